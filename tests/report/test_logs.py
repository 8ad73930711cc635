"""Logs as they lie there: half written, damaged, with gaps, with other names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from spikelet.report.logs import read_lines, read_table, rounded, thin, training_table


def log(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "train_log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_t22_a_log_is_readable_while_its_last_line_is_half_written(tmp_path: Path) -> None:
    path = log(tmp_path, "step,train_loss\n1,2.5\n2,2.25\n3,2.12")
    assert read_table(path).columns == {"step": [1, 2], "train_loss": [2.5, 2.25]}
    with path.open("a") as file:
        file.write("5\n")
    assert read_table(path).columns["train_loss"] == [2.5, 2.25, 2.125]


@pytest.mark.parametrize("text", ["", "step,train_loss", "step,train_loss\n", "\n\n"])
def test_a_log_without_rows_has_no_columns(tmp_path: Path, text: str) -> None:
    assert read_table(log(tmp_path, text)).columns == {}
    assert read_table(tmp_path / "missing.csv").columns == {}


def test_empty_cells_are_gaps_and_text_is_left_out(tmp_path: Path) -> None:
    table = read_table(log(tmp_path, "step,val_loss,device,empty\n1,,cpu,\n2,1.5,cpu,\n3\n"))
    assert table.columns == {"step": [1, 2, 3], "val_loss": [None, 1.5, None]}
    assert table.present("val_loss") == [1.5]
    assert table.notes == []


def test_not_a_number_is_a_gap_and_a_note(tmp_path: Path) -> None:
    table = read_table(log(tmp_path, "step,train_loss\n1,2\n2,nan\n3,inf\n4,1\n"))
    assert table.columns["train_loss"] == [2, None, None, 1]
    assert table.notes == ["train_loss is nan at step 2, 2 times in all"]


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfstep,train_loss\r\n1,2\r\n\0\0\0\0\r\n2,1,7,8\r\n\xff\xfe,x\r\n3,1\r\n"
    table = read_table(log(tmp_path, data))
    assert table.columns == {"step": [1, 3], "train_loss": [2, 1]}
    assert table.notes == ["train_log.csv: 2 lines could not be read"]


def test_older_names_of_columns(tmp_path: Path) -> None:
    path = log(tmp_path, "step,loss,valid_loss,valid_bits_per_byte,lr\n1,2,3,4,5\n")
    names = ["step", "train_loss", "val_loss", "val_bits_per_byte", "learning_rate"]
    assert sorted(training_table(path).columns) == sorted(names)
    both = training_table(log(tmp_path, "step,loss,train_loss\n1,2,3\n")).columns
    assert both == {"step": [1], "loss": [2], "train_loss": [3]}


def test_steps_that_were_done_again_count_once(tmp_path: Path) -> None:
    rows = "1,10,5\n2,20,4\n3,30,3\n4,40,9\n3,30,2\n4,40,1\n"
    table = training_table(log(tmp_path, "step,tokens,train_loss\n" + rows))
    assert table.columns["train_loss"] == [5, 4, 2, 1]
    parts = training_table(log(tmp_path, "step,tokens,train_loss,val_loss\n1,1,5,\n1,1,,6\n"))
    assert parts.columns["val_loss"] == [None, 6]
    custom = training_table(log(tmp_path, "step,accuracy\n1,5\n2,6\n1,7\n"))
    assert custom.columns["step"] == [1, 2, 1], "another log may count within an epoch"


def test_a_long_log_keeps_its_extremes_and_all_validations() -> None:
    count = 20_000
    columns = {
        "step": [float(n) for n in range(count)],
        "train_loss": [math.sin(n / 500) for n in range(count)],
        "grad_norm": [1.0] * count,
        "val_loss": [float(n) if n % 97 == 0 else None for n in range(count)],
    }
    columns["grad_norm"][12_345] = 900.0
    columns["train_loss"][4_321] = -7.0
    thinned = thin(columns, 2000, whole=["val_loss"])
    assert 500 < len(thinned["step"]) < 3000
    assert max(thinned["grad_norm"]) == 900.0
    assert min(thinned["train_loss"]) == -7.0
    assert [v for v in thinned["val_loss"] if v is not None] == [
        float(n) for n in range(0, count, 97)
    ]
    assert thinned["step"] == sorted(thinned["step"])
    assert (thinned["step"][0], thinned["step"][-1]) == (0, count - 1)
    assert thin(columns, count) == columns


def test_numbers_take_few_letters() -> None:
    assert rounded([1.0, None, 0.123456789, 1e22, 2.5]) == [1, None, 0.123457, 1e22, 2.5]
    assert repr(rounded([3.0])) == "[3]"


def test_broken_lines_of_json_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n{"step": \n\xff\n{"text": "a\\u2028b"}\n{"step": 2')
    assert read_lines(path) == [{"step": 1}, {"text": "a\u2028b"}]
    assert read_lines(tmp_path / "missing") == []
