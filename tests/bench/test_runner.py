"""Turns of base and speculative decoding, and what becomes of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import spikelet
from bench.fake import FakeModel
from spikelet import bench
from spikelet.bench import machine, runner


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not measured, and the fake takes any configuration."""
    found = {
        "read_gb_per_second": 10.0,
        "fma_gflop_per_second": 100.0,
        "int8_gop_per_second": 200.0,
    }
    monkeypatch.setattr(machine, "given", lambda _threads: found)
    monkeypatch.setattr(spikelet, "SpeculativeConfig", SimpleNamespace, raising=False)


def run(model: FakeModel, **settings: Any) -> bench.Report:
    """Measured on the fake's own clock: tests time nothing."""
    settings = {"classes": ["random"], "max_new_tokens": 9, "prompts_per_class": 2, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "perf_counter", lambda: model.now)
        return bench.run(model, **settings)  # type: ignore[arg-type]


def test_a_row_for_every_combination() -> None:
    report = run(
        FakeModel(),
        temperatures=[0, 0.7],
        methods=["ngram", "off"],
        num_speculative_tokens=["auto", 2],
        batch_sizes=[1, 3],
        repetitions=1,
    )
    # Without drafts there is only one length.
    assert len(report.rows) == 12
    assert len({(r.temperature, r.method, r.num_speculative_tokens, r.batch_size)
                for r in report.rows}) == 12  # fmt: skip
    # Batches of 3 repeat the first of the two prompts.
    assert {row.prompts for row in report.rows if row.batch_size == 3} == {3}


def test_turns_go_forth_and_back_and_the_first_does_not_count() -> None:
    model = FakeModel()
    report = run(model, temperatures=[0], methods=["a", "b"], repetitions=2, prompts_per_class=1)
    order = ["off" if call[0] == "off" else call[0].method for call in model.calls]
    assert order == ["off", "a", "b", "b", "a", "off", "off", "a", "b"]
    assert {row.speedup.repetitions for row in report.rows} == {2}


def test_all_run_over_the_same_prompts_seeds_and_options() -> None:
    model = FakeModel()
    run(model, temperatures=[0.5], repetitions=1)
    options = [call[2] for call in model.calls]
    seeds = [given.pop("seed") for given in options]
    assert seeds == [0, 0, 1, 1] * 2
    assert all(given == options[0] for given in options)
    assert options[0]["ignore_eos"] is True
    assert options[0]["top_p"] == 1.0


def test_figures_of_a_row() -> None:
    (row,) = run(FakeModel(0.004, 0.002), temperatures=[1.0], repetitions=3).rows
    assert row.speedup.median == pytest.approx(2.0)
    assert row.speedup.low <= row.speedup.median <= row.speedup.high
    # Two prompts of 9 tokens, of which the first is the prompt's pass.
    assert row.base_tokens_per_second.median == pytest.approx(16 / 0.008)
    assert row.predicted_speedup == pytest.approx(1.5)
    assert row.mean_draft_length == pytest.approx(3.0)
    assert row.acceptance_rate == pytest.approx(0.5)
    assert row.mean_acceptance_length == pytest.approx(2.5)
    assert row.acceptance_rate_per_position == pytest.approx([0.75, 0.5, 0.25])
    assert row.accepted_histogram == [6, 6, 6, 6]
    assert row.by_source["ngram"]["num_draft_tokens"] == 72
    assert row.rounds == 10
    assert row.chose_base == pytest.approx(0.2)
    assert row.verify_ms == pytest.approx(0.02)
    assert row.draft_ms + row.verify_ms + row.accept_ms + row.other_ms == pytest.approx(
        1e3 * 0.004 / 10
    )


def test_other_text_is_seen() -> None:
    report = run(FakeModel(wrong=True), temperatures=[0], repetitions=1)
    assert [row.text for row in report.rows] == ["DIFFERS"]
    assert "differs from base decoding's" in report.failures(0.0)[0]
    assert report.rows[0].sha256 != report.rows[0].base_sha256


@pytest.mark.parametrize(
    ("verify", "temperature", "forced", "promise"),
    [
        ("auto", 1.0, None, "identical"),
        ("coupled", 1.0, None, "identical"),
        ("block", 0.0, None, "identical"),
        ("block", 1.0, None, "distribution"),
        ("token", 0.5, None, "distribution"),
        ("auto", 0.0, 0.8, "forced"),
    ],
)
def test_what_a_text_promises(
    verify: str, temperature: float, forced: float | None, promise: str
) -> None:
    report = run(
        FakeModel(wrong=promise != "identical"),
        verify=verify,
        temperatures=[temperature],
        forced_acceptance=forced,
        repetitions=1,
    )
    assert [row.text for row in report.rows] == [promise]
    # Only what is promised can be broken.
    assert report.failures(0.0) == []


def test_a_slow_row_fails_after_it_was_measured_again() -> None:
    model = FakeModel(base=0.001, speculative=0.0015)
    report = run(model, temperatures=[0], repetitions=2, settle=0.98)
    (row,) = report.rows
    assert 2 < row.speedup.repetitions <= 2 * runner.MOST_REPETITIONS
    assert "below 0.98" in report.failures()[0]


def test_a_quick_row_is_measured_once() -> None:
    report = run(FakeModel(0.003, 0.001), temperatures=[0], repetitions=2, settle=0.98)
    assert [row.speedup.repetitions for row in report.rows] == [2]
    assert report.failures() == []


def test_only_the_row_in_doubt_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    monkeypatch.setattr(runner, "perf_counter", lambda: model.now)
    group = runner.Group(
        model, [[1, 2]], 0.0, 5, 1,
        [runner.Variant(name, "auto", "auto", None) for name in ("good", "bad")],
    )  # type: ignore[arg-type]  # fmt: skip
    for number in range(2):
        group.turn(number, [0, 1])
    group.base[1].seconds[:] = [1.0, 1.0]
    group.sides[1].seconds[:] = [2.0, 0.9]
    runner.measure_again(group, 2, 0.98)
    assert len(group.base[0].seconds) == len(group.sides[0].seconds) == 2
    assert len(group.base[1].seconds) == len(group.sides[1].seconds) > 2


def test_the_ceiling_is_the_product_of_the_greatest_probabilities() -> None:
    model = FakeModel()
    group = runner.Group(model, [[3, 4]], 1.0, 5, 1, [])  # type: ignore[arg-type]
    group.base = [runner.Side("off", ids=[[7, 8, 9]])]
    logits = np.asarray(model.forward([3, 4, 7, 8], model.new_state()), np.float64)[1:]
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    expected = [p.mean(), (p[0] * p[1] + p[1] * p[2]) / 2, p.prod()]
    assert group.ceiling() == pytest.approx(expected, rel=1e-5)
    group.temperature = 0.0
    assert set(group.ceiling()) == {1.0}


def test_progress_reaches_its_end() -> None:
    seen: list[tuple[int, int, str]] = []
    run(FakeModel(), temperatures=[0, 1], repetitions=2, progress=lambda *a: seen.append(a))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][:2] == (6, 6)
    assert seen[-1][2] == "random, temperature 1"


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"classes": ["poems"]}, "'poems'"),
        ({"max_new_tokens": 1}, "max_new_tokens"),
        ({"repetitions": 0}, "repetitions"),
        ({"batch_sizes": [0]}, "batch_sizes"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], needed: str) -> None:
    with pytest.raises(spikelet.OptionError, match=needed):
        run(FakeModel(), **settings)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(spikelet.TokenizerError):
        run(FakeModel(), classes=["prose"])
    assert {row.prompt_class for row in run(FakeModel(), classes=None, repetitions=1).rows} == {
        "random"
    }


def test_likeliest_does_not_overflow() -> None:
    found = runner.likeliest(np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32))
    assert found.tolist() == [1.0, 0.5]
    assert math.isclose(found[1], 0.5)
