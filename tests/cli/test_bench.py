"""`spikelet bench`: words to settings, files, and the exit code of --check."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from spikelet import bench
from spikelet.bench import Figure, Report, Row
from spikelet.bench import machine as machines

from .helpers import Cli


class Runs:
    """Stands in for `bench.run`: keeps what it is called with."""

    def __init__(self, **changes: Any) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.changes = changes

    def __call__(self, model: Any, **settings: Any) -> Report:
        self.calls.append((model, settings))
        figure = Figure(1.0, 0.99, 1.01, 5)
        row = Row(
            model="m", prompt_class="prose", temperature=0.0, method="auto",
            num_speculative_tokens="auto", verify="auto", forced_acceptance=None, batch_size=1,
            dtype=model.dtype,
            threads=model.threads, prompts=4, tokens=8, base_tokens_per_second=figure,
            tokens_per_second=figure, speedup=figure, predicted_speedup=None,
            mean_draft_length=None, acceptance_rate=None, mean_acceptance_length=None,
            acceptance_rate_per_position=[], one_hot_ceiling=[], accepted_histogram=[],
            by_source={}, draft_ms=0.0, verify_ms=1.0, accept_ms=0.0, other_ms=0.0, base_ms=1.0,
            rounds=1, chose_base=1.0, text="identical", sha256=["ab"], base_sha256=["ab"],
        )  # fmt: skip
        for name, value in self.changes.items():
            object.__setattr__(row, name, value)
        given = {f"{name}_per_second": 1.0 for name in ("read_gb", "fma_gflop", "int8_gop")}
        return Report(machines.machine(), {model.threads: given}, [], [row])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(bench, "run", made)
    return made


def settings(runs: Runs) -> dict[str, Any]:
    ((_, found),) = runs.calls
    return {name: value for name, value in found.items() if name not in ("progress", "settle")}


def test_nothing_given_leaves_all_to_the_library(cli: Cli, runs: Runs, model_folder: Path) -> None:
    result = cli("bench", model_folder)
    assert result.code == 0
    assert settings(runs) == {"repetitions": 5}
    assert "base tok/s" in result.out
    assert "yes ab" in result.out


def test_lists_become_axes(cli: Cli, runs: Runs, model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\n%%\ntwo\n")
    cli(
        "bench", "--model", model_folder, "--temperature", "0,0.7", "--method", "prophet,ngram",
        "--num-speculative-tokens", "auto,4", "--batch-size", "1,4", "--class", "prose,random",
        "--prompts", file, "--verify", "block", "--forced-acceptance", "0.8", "-n", "16",
        "--repetitions", "7",
    )  # fmt: skip
    assert settings(runs) == {
        "temperatures": [0.0, 0.7], "methods": ["prophet", "ngram"],
        "num_speculative_tokens": ["auto", 4], "batch_sizes": [1, 4],
        "classes": ["prose", "random"], "prompts": {"mine": ["one", "two"]}, "verify": "block",
        "forced_acceptance": 0.8, "max_new_tokens": 16, "repetitions": 7,
    }  # fmt: skip


def test_a_run_for_each_dtype_and_number_of_threads(
    cli: Cli, runs: Runs, model_folder: Path
) -> None:
    result = cli("bench", model_folder, "--dtype", "f32,bf16", "--threads", "1")
    assert [(model.dtype, model.threads) for model, _ in runs.calls] == [("f32", 1), ("bf16", 1)]
    assert "bf16" in result.out


def test_quick_is_overruled_by_what_is_given(cli: Cli, runs: Runs, model_folder: Path) -> None:
    cli("bench", model_folder, "--quick", "-n", "20")
    assert settings(runs) == {"repetitions": 5, "max_new_tokens": 20, "prompts_per_class": 2}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({}, 0, ""),
        ({"text": "DIFFERS"}, 1, "differs from base"),
        ({"speedup": Figure(1.0, 0.9, 1.1, 5)}, 1, "below 0.98"),
    ],
)
def test_check(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, model_folder: Path,
    changes: dict[str, Any], code: int, message: str,
) -> None:  # fmt: skip
    runs = Runs(**changes)
    monkeypatch.setattr(bench, "run", runs)
    result = cli("bench", model_folder, "--check")
    assert result.code == code
    assert message in result.err
    assert runs.calls[0][1]["settle"] == 0.98
    # Without --check nothing is judged.
    assert cli("bench", model_folder).code == 0
    assert runs.calls[1][1]["settle"] is None


def test_files(cli: Cli, runs: Runs, model_folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "r.json", tmp_path / "r.csv"
    result = cli("bench", model_folder, "--json", "--out", out, "--csv", table)
    assert json.loads(result.out) == json.loads(out.read_text())
    assert Report.read(out).rows[0].prompt_class == "prose"
    with table.open() as file:
        assert next(csv.DictReader(file))["speedup_low"] == "0.99"


def test_plots_need_matplotlib_before_anything_is_measured(
    cli: Cli, runs: Runs, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "matplotlib" or None)
    result = cli("bench", model_folder, "--plots", tmp_path / "charts")
    assert result.code == 2
    assert "pip install 'spikelet[bench]'" in result.err
    assert runs.calls == []


def test_plots(cli: Cli, runs: Runs, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "charts"
    assert cli("bench", model_folder, "--plots", folder, "--plot-format", "png").code == 0
    assert (folder / "speedup.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--temperature", "warm"], "cannot read 'warm'"),
        (["--num-speculative-tokens", "few"], "cannot read 'few'"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["--model", "x"], "not both"),
        (["--out", "."], "is a folder"),
    ],
)
def test_wrong_words(
    cli: Cli, runs: Runs, model_folder: Path, words: list[str], needed: str
) -> None:
    result = cli("bench", model_folder, *words)
    assert result.code in (1, 2)
    assert needed in result.err
    assert runs.calls == []


def test_help_has_the_command_s_own_defaults(cli: Cli) -> None:
    text = " ".join(cli("bench", "--help").out.split())
    assert "(default: 0,1) --method" in text
    assert "(default: 128) axes" in text


def test_a_true_run(cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {f"{name}_per_second": 1.0 for name in ("read_gb", "fma_gflop", "int8_gop")}
    monkeypatch.setattr(machines, "given", lambda _threads: given)
    result = cli(
        "bench", model_folder, "--class", "copy,random", "--method", "ngram", "--temperature", "0",
        "-n", "12", "--repetitions", "1", "--threads", "1", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [row["text"] for row in found["rows"]] == ["identical", "identical"]
    assert all(row["sha256"] == row["base_sha256"] for row in found["rows"])
