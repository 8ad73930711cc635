"""`generate_batch`: many rows, each as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import spikelet

PROMPTS = ["a", "something longer", "héé", "x" * 700, "", "one more", "and the last of them all"]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_row_is_what_it_is_alone(writer: spikelet.Model, batch_size: int) -> None:
    done = writer.generate_batch(PROMPTS, max_new_tokens=30, seed=5, batch_size=batch_size)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, done, strict=True)):
        alone = writer.generate(prompt, max_new_tokens=30, seed=5, row=row).run()
        assert completion.ids == alone.ids
        assert completion.text == alone.text
        assert completion.tokens == alone.tokens
        assert completion.finish_reason == alone.finish_reason
        assert completion.seed == 5
        assert completion.stats.num_generated_tokens == len(alone.ids)


def test_every_row_may_have_its_seed(writer: spikelet.Model) -> None:
    seeds = list(range(20, 20 + len(PROMPTS)))
    done = writer.generate_batch(PROMPTS, max_new_tokens=20, seed=seeds)
    assert [completion.seed for completion in done] == seeds
    for prompt, seed, completion in zip(PROMPTS, seeds, done, strict=True):
        assert completion.ids == writer.generate(prompt, max_new_tokens=20, seed=seed).run().ids


def test_rows_of_one_prompt_differ(writer: spikelet.Model) -> None:
    done = writer.generate_batch(["same"] * 4, max_new_tokens=20)
    assert len({tuple(completion.ids) for completion in done}) == 4
    assert len({completion.seed for completion in done}) == 1


def test_rows_leave_at_different_times(golden: Path) -> None:
    model = spikelet.load(golden / "rwkv4-tiny", threads=2)
    prompts = [[i] for i in range(12)]
    done = model.generate_batch(
        prompts, max_new_tokens=60, seed=1, stop_ids=range(0, 256, 9), batch_size=4
    )
    assert len({len(completion.ids) for completion in done}) > 2
    for row, (prompt, completion) in enumerate(zip(prompts, done, strict=True)):
        alone = model.generate(
            prompt, max_new_tokens=60, seed=1, stop_ids=range(0, 256, 9), row=row
        ).run()
        assert completion.ids == alone.ids


def test_no_prompts(writer: spikelet.Model) -> None:
    assert writer.generate_batch([]) == []


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ("text", {}, TypeError, "a sequence of prompts is needed, found str"),
        (3, {}, TypeError, "a sequence of prompts is needed, found int"),
        ([1, 2], {}, TypeError, "a sequence of token ids is needed, found int"),
        (
            ["a"],
            {"batch_size": 0},
            spikelet.OptionError,
            "`batch_size`: found 0, needed .* 1 or more",
        ),
        (["a"], {"batch_size": -1}, spikelet.OptionError, "`batch_size`: found -1"),
        (
            ["a"],
            {"seed": [1, 2]},
            spikelet.OptionError,
            "found 2 seeds, needed .* each of the 1 prompts",
        ),
        (["a"], {"seed": [-1]}, spikelet.OptionError, "`seed`: found -1"),
        (["a"], {"row": 1}, TypeError, "unexpected keyword argument 'row'"),
        (["a", [1, 999]], {}, spikelet.OptionError, "token id 999 is outside"),
        (["a", [-2]], {}, spikelet.OptionError, "`prompts`: found -2"),
    ],
)
def test_bad_batches_are_refused(
    writer: spikelet.Model,
    prompts: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        writer.generate_batch(prompts, **options)


def test_an_empty_prompt_is_refused_before_any_row_runs(model: spikelet.Model) -> None:
    with pytest.raises(spikelet.OptionError, match=r"`prompt`.*at least one token"):
        model.generate_batch([[1], []], max_new_tokens=10**9)
