"""`spikelet eval`: bits per byte against plain arithmetic over the model's logits."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

import spikelet

from .conftest import make_model
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


def test_bytes_are_those_of_the_text_whatever_the_tokens(cli: Cli, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = "<|endoftext|>the cat sat on the mat.<|endoftext|>the rat — ate the hat." * 3
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=64, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([text.replace("<|endoftext|>", "")], trainer)
    unused = range(256 - tokenizer.get_vocab_size())
    tokenizer.add_special_tokens([f"<unused{number}>" for number in unused])
    folder = make_model(tmp_path / "bpe", config={})
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    found = json.loads(cli("eval", folder, "-", "--json", stdin=text.encode()).out)["total"]
    assert len(ids) < len(text) // 2
    assert found["tokens"] == len(ids) - 1
    assert found["bytes"] == len(text.encode()) - len("<|endoftext|>")
    bits = naive_nats(folder, ids) / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / found["bytes"], rel=1e-6)


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


@pytest.fixture
def blimp_file(tmp_path: Path) -> Path:
    file = tmp_path / "blimp.jsonl.gz"
    pairs = [("A cat sleeps.", "A cat sleep."), ("Who ran?", "Ran who?"), ("I am.", "I is.")]
    items = [
        {"UID": name, "linguistics_term": "binding", "sentence_good": good, "sentence_bad": bad}
        for name in ("one", "two")
        for good, bad in pairs
    ]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    return file


def test_tasks_print_their_errors_and_intervals(
    cli: Cli, model_folder: Path, blimp_file: Path, tmp_path: Path
) -> None:
    passages = tmp_path / "lambada.jsonl"
    passages.write_text('{"text": "The fox ran"}\n{"text": "The fox sat"}\n')
    out = tmp_path / "new folder" / "results.json"
    tasks = ["--task", f"blimp={blimp_file}", "--task", f"lambada={passages}"]
    words = ["eval", model_folder, *tasks, "--out", out]
    shown = cli(*words)
    assert shown.code == 0
    header, *rows = shown.out.splitlines()
    assert header.split() == [
        *("task", "metric", "items", "value", "stderr"),
        *("95%", "interval", "chance", "items/s"),
    ]
    names = [row.split()[:3] for row in rows]
    assert names == [
        ["blimp", "acc", "6"],
        ["syntax_semantics", "acc", "6"],
        ["binding", "acc", "6"],
        ["lambada", "acc", "2"],
        ["lambada", "perplexity", "2"],
    ]
    written = json.loads(out.read_text())
    printed = json.loads(cli(*words[:-2], "--json").out)
    for found in (written, printed):
        assert found["texts"] == []
        assert found["total"] is None
        for task in found["tasks"].values():
            assert task.pop("seconds") > 0
    assert written == printed
    acc = written["tasks"]["blimp"]["metrics"]["acc"]
    cells = [f"{100 * acc[key]:.2f}%" for key in ("value", "stderr", "low", "high")]
    assert rows[0].split()[3:8] == [*cells[:3], "-", cells[3]]
    assert set(written["tasks"]["blimp"]["groups"]["paradigm"]) == {"one", "two"}
    assert list(out.parent.iterdir()) == [out]


def test_results_are_shown_where_they_cannot_be_written(
    cli: Cli, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = cli("eval", model_folder, text_file, "--out", text_file / "results.json")
    assert result.code == 1
    assert result.out.startswith("text ")
    assert result.err.count("\n") == 1


def test_texts_and_tasks_together(
    cli: Cli, model_folder: Path, text_file: Path, blimp_file: Path
) -> None:
    words = ["--model", model_folder, text_file, "--task", f"blimp={blimp_file}"]
    drawn = [*words, "--limit", "2", "--seed", "3", "--json"]
    found = json.loads(cli("eval", *drawn).out)
    assert found["texts"][0]["tokens"] == found["total"]["tokens"]
    assert (found["limit"], found["seed"]) == (2, 3)
    assert found["tasks"]["blimp"]["num_items"] == 4
    shown = cli("eval", *words).out
    assert shown.startswith("text ")
    assert "\ntask " in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "lambada"], "--task needs the form NAME=FILE, not 'lambada'"),
        (["--task", "lambada="], "--task needs the form NAME=FILE"),
        (["--task", "winogrande=FILE"], "no task 'winogrande', there are lambada, blimp, piqa"),
        (["--task", "blimp=FILE", "--task", "blimp=x"], "--task blimp is given twice"),
        (["--task", "blimp=FILE", "--limit", "0"], "--limit"),
        (["--task", "blimp=FILE", "--seed", "1"], "--seed draws items for --limit"),
        (["--task", "blimp=FILE", "--out", "."], "--out needs a file, . is a folder"),
    ],
)
def test_tasks_that_cannot_be(
    cli: Cli, model_folder: Path, blimp_file: Path, words: list[str], message: str
) -> None:
    words = [word.replace("FILE", str(blimp_file)) for word in words]
    result = cli("eval", model_folder, *words)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_wrong_item_of_a_task_is_one_line_of_error(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "a b"}\n{"passage": "a b"}\n')
    result = cli("eval", model_folder, "--task", f"lambada={file}")
    assert result.code == 1
    found = "needs a text 'text', found only 'passage'"
    assert result.err == f"spikelet: error: {file}:2: {found}\n"


def test_tasks_show_a_bar_on_a_terminal(model_folder: Path, blimp_file: Path) -> None:
    words = ["eval", model_folder, "--task", f"blimp={blimp_file}"]
    terminal = Terminal(words, columns=100)
    assert terminal.finish() == 0
    assert "\r\x1b[2Kblimp \x1b[36m" in terminal.shown
    assert "of 12 sequences" in terminal.shown
    # The bar is gone before the table comes.
    assert "\r\x1b[2K\x1b[1mtask " in terminal.shown


def test_progress_on_a_terminal(model_folder: Path, text_file: Path) -> None:
    text_file.write_bytes(TEXT.encode() * 12)
    terminal = Terminal(["eval", "--model", model_folder, text_file], columns=100)
    assert terminal.finish() == 0
    assert "\r\x1b[2Ktext.txt \x1b[36m" in terminal.shown
    assert "bits/byte" in terminal.shown.partition("\x1b[2K")[2]
    # The bar is gone before the table comes.
    assert "\r\x1b[2K\x1b[1mtext " in terminal.shown
