"""`spikelet eval`: bits per byte against plain arithmetic over the model's logits."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

import spikelet

from .helpers import Cli, Terminal

# Longer than one piece, with characters of one to four bytes.
TEXT = "The fox — der Füchslein — 狐狸 🦊 ran.\n" * 40


def naive_nats(folder: Path, ids: list[int]) -> float:
    """-sum log p(id | all before), from logits, in float64."""
    model = spikelet.load(folder)
    logits = model.forward(ids[:-1], model.new_state()).astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    return float((log_z - logits[np.arange(len(ids) - 1), ids[1:]]).sum())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    return file


def test_equals_plain_arithmetic(cli: Cli, model_folder: Path, text_file: Path) -> None:
    found = json.loads(cli("eval", model_folder, text_file, "--json").out)["total"]
    data = TEXT.encode()
    nats = naive_nats(model_folder, list(data))
    assert len(data) > 1100
    assert found["tokens"] == found["bytes"] == len(data) - 1  # all but the first
    assert found["loss"] == pytest.approx(nats / (len(data) - 1), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(data) - 1)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / (len(data) - 1), rel=1e-6)


def test_context_forgets(cli: Cli, model_folder: Path, text_file: Path) -> None:
    words: list[str | Path] = [
        "eval",
        "--model",
        model_folder,
        text_file,
        "--context",
        "100",
        "--json",
    ]
    found = json.loads(cli(*words).out)["total"]
    data = list(TEXT.encode())
    windows = [data[at : at + 101] for at in range(0, len(data) - 1, 100)]
    nats = sum(naive_nats(model_folder, window) for window in windows)
    assert found["tokens"] == len(data) - 1
    assert found["loss"] == pytest.approx(nats / (len(data) - 1), rel=1e-6)


def test_gzip_and_standard_input_are_the_same_text(
    cli: Cli, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"  # told by its content, not by its name
    packed.write_bytes(gzip.compress(TEXT.encode()))
    words: list[str | Path] = ["eval", "--model", model_folder, "--json"]
    results = [
        cli(*words, text_file),
        cli(*words, packed),
        cli(*words, "-", stdin=TEXT.encode()),
        cli(*words, "-", stdin=packed.read_bytes()),
    ]
    assert len({json.loads(result.out)["total"]["nats"] for result in results}) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_max_bytes_cuts_at_a_character(
    cli: Cli, model_folder: Path, tmp_path: Path, packed: bool
) -> None:
    file = tmp_path / "text"
    data = TEXT.encode()
    file.write_bytes(gzip.compress(data) if packed else data)
    begin = data.index("狐".encode())
    for cut in range(begin, begin + 4):
        words: list[str | Path] = [
            "eval",
            "--model",
            model_folder,
            file,
            "--max-bytes",
            str(cut),
            "--json",
        ]
        found = json.loads(cli(*words).out)["total"]
        assert found["bytes"] == (begin if cut < begin + 3 else begin + 3) - 1


def test_several_texts_have_a_total(cli: Cli, model_folder: Path, text_file: Path) -> None:
    other = text_file.with_name("other.txt")
    other.write_text("Something else.")
    result = cli("eval", "--model", model_folder, text_file, other)
    header, *rows = result.out.splitlines()
    assert header.split() == [
        "text",
        "tokens",
        "bytes",
        "loss",
        "perplexity",
        "bits/byte",
        "tokens/s",
    ]
    assert [row.split()[0] for row in rows] == [str(text_file), str(other), "total"]
    tokens = [int(row.split()[1]) for row in rows]
    assert tokens[2] == tokens[0] + tokens[1]
    found = json.loads(cli("eval", "--model", model_folder, text_file, other, "--json").out)
    assert found["total"]["nats"] == pytest.approx(sum(text["nats"] for text in found["texts"]))


@pytest.mark.parametrize(
    ("data", "needed"),
    [
        (b"", "nothing to predict"),
        (b"x", "nothing to predict"),
        (b"ab\xffcd", "not UTF-8 at byte 2"),
        (b"\x1f\x8b broken", "gzip"),
    ],
)
def test_texts_that_cannot_be_scored(
    cli: Cli, model_folder: Path, tmp_path: Path, data: bytes, needed: str
) -> None:
    file = tmp_path / "text"
    file.write_bytes(data)
    result = cli("eval", "--model", model_folder, file)
    assert result.code in (1, 2)
    assert needed in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--context", "0"], ["--max-bytes", "0"], ["--max-bytes", "10X"]]
)
def test_impossible_values(cli: Cli, text_file: Path, words: list[str]) -> None:
    result = cli("eval", text_file, *words)
    assert result.code == 2
    assert result.err.count("\n") == 1


def test_a_model_without_a_text(cli: Cli, model_folder: Path) -> None:
    result = cli("eval", model_folder)
    assert result.code == 2
    assert "no text given" in result.err


def test_progress_on_a_terminal(model_folder: Path, text_file: Path) -> None:
    text_file.write_bytes(TEXT.encode() * 12)
    terminal = Terminal(["eval", "--model", model_folder, text_file], columns=100)
    assert terminal.finish() == 0
    assert "\r\x1b[2Ktext.txt \x1b[36m" in terminal.shown
    assert "bits/byte" in terminal.shown.partition("\x1b[2K")[2]
    # The bar is gone before the table comes.
    assert "\r\x1b[2K\x1b[1mtext " in terminal.shown
