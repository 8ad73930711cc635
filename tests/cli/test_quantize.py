"""`spikelet quantize`: right files, a judgement, and nothing lost when it goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import spikelet
from spikelet.cli import terminal
from spikelet.cli.quantize import split

from .helpers import Cli, Terminal, start

WORDS = "The fox and the hare went into the wood. " * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "home" not in path.name}


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_calibrated_and_judged_by_what_was_kept_back(
    cli: Cli, model_folder: Path, tmp_path: Path, text: Path, dtype: str
) -> None:
    target = tmp_path / "deep" / "new"
    words = ["--dtype", dtype, "--calibration", text, "--max-loss", "50"]
    result = cli("quantize", model_folder, target, *words)
    assert result.code == 0, result.err
    calibrated, judged, wrote = result.out.splitlines()
    assert calibrated.startswith("calibrated on 2.0k tokens: ")
    found = re.fullmatch(
        r"bits per byte of the calibration text's last fifth \(4\d\d B\): "
        r"(\d+\.\d{4}) before, (\d+\.\d{4}) after, ([+-]\d+\.\d\d) %",
        judged,
    )
    assert found, judged
    assert 100 * (float(found[2]) / float(found[1]) - 1) == pytest.approx(float(found[3]), abs=0.02)
    assert wrote.startswith(f"wrote {target}: spikegpt, {dtype}, ")
    assert spikelet.inspect(target)["dtype"] == dtype
    assert spikelet.load(target).tokenizer.encode("ab") == [97, 98]
    assert left_in(tmp_path) == {"deep", "words.txt"}


def test_without_a_text_it_says_what_was_not_done(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    result = cli("quantize", model_folder, target)
    assert result.code == 0, result.err
    assert result.out.startswith(
        "not calibrated: no --calibration text\nquality not judged: no text\nwrote "
    )
    model, made = spikelet.load(target), spikelet.load(model_folder, dtype="q4")
    ids = [1, 2, 3]
    assert np.array_equal(
        model.forward(ids, model.new_state()), made.forward(ids, made.new_state())
    )


def test_judged_by_another_text(cli: Cli, model_folder: Path, tmp_path: Path, text: Path) -> None:
    target = tmp_path / "new"
    words = ["--dtype", "q8", "--eval", text, "--max-bytes", "1k", "--max-loss", "5"]
    result = cli("quantize", model_folder, target, *words)
    assert result.code == 0, result.err
    assert "not calibrated" in result.out
    assert "bits per byte of --eval (1023 B)" in result.out


def test_too_great_a_loss_is_refused_unless_forced(
    cli: Cli, model_folder: Path, tmp_path: Path, text: Path
) -> None:
    target = tmp_path / "new"
    words = ["quantize", model_folder, target, "--calibration", text, "--max-loss", "-50"]
    refused = cli(*words)
    assert refused.code == 1
    assert re.search(
        r"q4 costs -?\d+\.\d\d % in bits per byte, more than -50 % \(--max-loss\); nothing was "
        r"written \(--force writes it all the same\)\n$",
        refused.err,
    )
    assert left_in(tmp_path) == {"words.txt"}
    assert cli(*words, "--force").code == 0
    before = contents(target)
    again = cli(*words)
    assert again.code == 2
    assert "--force replaces it" in again.err
    assert contents(target) == before


@pytest.mark.parametrize("judged", [True, False])
def test_interrupted_the_old_model_stays(
    cli: Cli, model_folder: Path, tmp_path: Path, text: Path, judged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = tmp_path / "new"
    assert cli("quantize", model_folder, target).code == 0
    before = contents(target)

    def interrupt(self: terminal.Progress, *args: object, **options: object) -> None:
        if not judged or self._label == "judging after":
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Progress, "update", interrupt)
    words = ["--calibration", text] if judged else []
    result = cli("quantize", model_folder, target, "--dtype", "q8", "--force", *words)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert contents(target) == before
    assert left_in(tmp_path) == {"new", "words.txt"}


@pytest.mark.parametrize(
    ("words", "code", "needed"),
    [
        (["nowhere", "new"], 1, "nowhere"),
        (["SRC", "new", "--dtype", "f16"], 2, "--dtype needs q8 or q4, not f16"),
        (["SRC", "/dev/null/new"], 1, "/dev/null"),
        (["SRC", "/dev/null/new", "--eval", "words.txt"], 1, "/dev/null"),
        (["SRC", "new", "--calibration", "gone.txt"], 1, "gone.txt"),
        (["SRC", "new", "--calibration", "-", "--eval", "-"], 2, "only once"),
        (["SRC", "new", "--eval", "short.txt"], 2, "nothing to predict"),
        (["SRC", "new", "--threads", "0"], 2, "--threads"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    cli: Cli, model_folder: Path, tmp_path: Path, text: Path, words: list[str], code: int,
    needed: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("a")
    found = [str(model_folder) if word == "SRC" else word for word in words]
    result = cli("quantize", *found)
    assert result.code == code
    assert needed in result.err
    assert result.err.count("\n") == 1
    assert left_in(tmp_path) == {"words.txt", "short.txt"}


def test_a_terminal_shows_bars_and_a_log_none(
    model_folder: Path, tmp_path: Path, text: Path
) -> None:
    words = ["--calibration", text, "--max-loss", "50"]
    shown = Terminal(["quantize", model_folder, tmp_path / "a", *words], columns=200)
    assert shown.finish() == 0
    assert "calibrated on" in shown.shown
    assert "wrote" in shown.shown
    process = start("quantize", model_folder, tmp_path / "b", *words)
    out, err = process.communicate(timeout=20)
    assert out.startswith(b"calibrated on")
    assert not {b"\x1b"[0], b"\r"[0]} & set(out + err)


def test_quiet(cli: Cli, model_folder: Path, tmp_path: Path, text: Path) -> None:
    words = ["--calibration", text, "--max-loss", "50", "--quiet"]
    result = cli("quantize", model_folder, tmp_path / "new", *words)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_the_last_fifth_begins_with_a_word() -> None:
    first, last = split("a bc " * 20)
    assert first + last == "a bc " * 20
    assert last == " " + "a bc " * 4 or last.startswith(" ")
    assert split("x" * 10) == ("x" * 8, "xx")
    assert split("") == ("", "")
