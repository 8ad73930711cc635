"""Tables, files and charts of a report."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from spikelet.bench import Figure, Report, Row
from spikelet.bench import machine as machines
from spikelet.bench.report import joined

ROW = Row(
    model="m", prompt_class="prose", temperature=0.0, method="prophet",
    num_speculative_tokens="auto", verify="auto", forced_acceptance=None, batch_size=1,
    dtype="f32", threads=2, prompts=4,
    tokens=128, base_tokens_per_second=Figure(100.0, 99.0, 101.0, 5),
    tokens_per_second=Figure(180.0, 170.0, 190.0, 5), speedup=Figure(1.8, 1.7, 1.9, 5),
    predicted_speedup=1.75, mean_draft_length=3.0, acceptance_rate=0.6, mean_acceptance_length=2.8,
    acceptance_rate_per_position=[0.8, 0.6, 0.4], one_hot_ceiling=[0.9, 0.8, 0.7],
    accepted_histogram=[10, 20, 30, 40],
    by_source={"prophet": {"num_draft_tokens": 9, "num_accepted_tokens": 5}},
    draft_ms=0.1, verify_ms=11.0, accept_ms=0.01, other_ms=0.2, base_ms=10.0, rounds=50,
    chose_base=0.1, text="identical", sha256=["ab" * 32], base_sha256=["ab" * 32],
)  # fmt: skip


def make(*rows: Row) -> Report:
    given = {
        "read_gb_per_second": 20.0,
        "fma_gflop_per_second": 200.0,
        "int8_gop_per_second": 700.0,
    }
    costs = {"pass": {1: 0.01, 2: 0.011, 4: 0.012, 8: 0.02}, "draft": {"prophet": 0.0005}}
    costs["engine"] = {1: 0.01, 4: 0.0125}
    entry = {
        "model": "m",
        "dtype": "f32",
        "threads": 2,
        **costs,
        "roofline": dict.fromkeys(costs["pass"], 0.009),
    }
    return Report(machines.machine(), {2: given}, [entry], list(rows or [ROW]))


def test_the_table_has_axes_only_where_they_differ() -> None:
    head, line = make().cells()
    assert "rows" not in head
    assert dict(zip(head, line, strict=True)) | {"T": "0"} == dict(zip(head, line, strict=True))
    cells = dict(zip(head, line, strict=True))
    assert cells["speed-up"] == "1.80 [1.70 1.90]"
    assert cells["identical"] == "yes abababab"
    assert cells["accepted"] == "60%"
    assert "rows" in make(ROW, replace(ROW, batch_size=4)).cells()[0]
    text = make().table()
    assert "memory 20.0 GB/s" in text
    assert text.splitlines()[-1].startswith("| prose | 0 | prophet |")


def test_promises_are_told() -> None:
    report = make(replace(ROW, text="distribution", verify="block"))
    assert "verify block: the text is drawn from the same distribution" in "\n".join(report.notes())
    assert report.cells()[1][-1] == "distribution"
    report = make(replace(ROW, text="forced", forced_acceptance=0.8))
    assert "forced acceptance: not the model's text" in "\n".join(report.notes())
    assert report.cells()[1][-1] == "not the model's text"
    assert make(replace(ROW, text="DIFFERS")).cells()[1][-1] == "NO"


def test_failures() -> None:
    assert make().failures() == []
    slow = replace(ROW, speedup=Figure(0.99, 0.97, 1.01, 5))
    (line,) = make(ROW, slow).failures()
    assert line.startswith("m: prose, temperature 0, prophet")
    assert "0.970, below 0.98" in line
    assert len(make(replace(slow, text="DIFFERS")).failures()) == 2


def test_json_and_back(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    report = make()
    file.write_text(json.dumps(report.as_dict()))
    again = Report.read(file)
    assert again == report
    assert str(Path.home()) not in file.read_text()


def test_csv() -> None:
    (row,) = csv.DictReader(io.StringIO(make().csv()))
    assert row["speedup"] == "1.8"
    assert row["speedup_low"] == "1.7"
    assert json.loads(row["accepted_histogram"]) == [10, 20, 30, 40]
    assert row["prompt_class"] == "prose"


def test_reports_join() -> None:
    both = joined([make(), make(replace(ROW, dtype="q8"))])
    assert len(both.rows) == len(both.costs) == 2
    assert "dtype" in both.cells()[0]


def test_a_row_without_drafts() -> None:
    nothing = replace(
        ROW, mean_draft_length=None, acceptance_rate=None, mean_acceptance_length=None,
        predicted_speedup=None, acceptance_rate_per_position=[], accepted_histogram=[],
        chose_base=1.0,
    )  # fmt: skip
    cells = dict(zip(*make(nothing).cells(), strict=True))
    assert cells["accepted"] == cells["length"] == cells["predicted"] == "-"


def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from spikelet.bench.plots import CHARTS, draw

    warm = replace(ROW, temperature=1.0, prompt_class="code")
    report = make(ROW, warm, replace(ROW, prompt_class="copy"))
    written = draw(report, tmp_path / "a")
    assert [file.stem for file in written] == list(CHARTS)
    again = draw(report, tmp_path / "b")
    assert [f.read_bytes() for f in written] == [f.read_bytes() for f in again]
    assert {file.suffix for file in draw(report, tmp_path / "c", kind="png")} == {".png"}


def test_charts_of_a_run_without_drafts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from spikelet.bench.plots import draw

    nothing = replace(
        ROW, mean_draft_length=None, acceptance_rate=None, mean_acceptance_length=None,
        predicted_speedup=None, acceptance_rate_per_position=[], accepted_histogram=[],
    )  # fmt: skip
    names = {file.stem for file in draw(make(nothing), tmp_path)}
    assert names == {"speedup", "passes", "break-even", "rounds"}


def test_the_roofline_is_memory_or_arithmetic(golden: Path) -> None:
    import spikelet

    model = spikelet.load(golden / "spikegpt-tiny", threads=1)
    blocks, head = machines.matrix_weights(model.config)
    slow = {"read_gb_per_second": 1e-3, "fma_gflop_per_second": 1e9, "int8_gop_per_second": 1e9}
    assert machines.pass_bound(model, 8, slow) == pytest.approx(4 * (blocks + head) / 1e6)
    slow = {"read_gb_per_second": 1e9, "fma_gflop_per_second": 1e-3, "int8_gop_per_second": 1.0}
    assert machines.pass_bound(model, 8, slow) == pytest.approx(16 * (blocks + head) / 1e6)
