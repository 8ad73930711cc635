"""`spikelet convert`: right numbers, and nothing lost when it goes wrong."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import spikelet
from spikelet.cli import terminal

from .helpers import Cli, Terminal, start

IDS = [10, 20, 30, 40]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def logits(folder: Path, **options: str) -> np.ndarray:
    model = spikelet.load(folder, **options)  # type: ignore[arg-type]
    return np.asarray(model.forward(IDS, model.new_state()))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_the_new_model_computes_like_the_old_one_in_that_type(
    cli: Cli, model_folder: Path, tmp_path: Path, dtype: str
) -> None:
    target = tmp_path / "new"
    result = cli("convert", model_folder, target, "--dtype", dtype)
    assert result.code == 0, result.err
    assert result.out.startswith(f"wrote {target}: spikegpt, {dtype}")
    assert spikelet.inspect(target)["dtype"] == dtype
    assert np.array_equal(logits(target), logits(model_folder, dtype=dtype))
    model = spikelet.load(target)
    assert model.tokenizer.encode("ab") == [97, 98]


def test_an_existing_target_is_kept_unless_forced(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    assert cli("convert", model_folder, target).code == 0
    before = contents(target)
    refused = cli("convert", model_folder, target, "--dtype", "f16")
    assert refused.code == 2
    assert "--force" in refused.err
    assert contents(target) == before
    assert cli("convert", model_folder, target, "--dtype", "f16", "--force").code == 0
    assert spikelet.inspect(target)["dtype"] == "f16"


def test_interrupted_the_old_model_stays(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    assert cli("convert", model_folder, target).code == 0
    before = contents(target)

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Progress, "update", interrupt)
    result = cli("convert", model_folder, target, "--dtype", "f16", "--force")
    assert result.code == 130
    assert "Traceback" not in result.err
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir() if "home" not in path.name] == ["new"]


def test_out_of_space_the_old_model_stays(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    assert cli("convert", model_folder, target).code == 0
    before = contents(target)
    process = start("convert", model_folder, target, "--force", preexec_fn=_small_files_only)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == b""
    assert err.startswith(b"spikelet: error: ")
    assert b"too large" in err
    assert err.count(b"\n") == 1
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir() if "home" not in path.name] == ["new"]


def _small_files_only() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@pytest.mark.parametrize(
    ("words", "code", "needed"),
    [
        (["nowhere", "new"], 1, "nowhere"),
        (["SRC", "new", "--dtype", "f64"], 2, "f64"),
        (["SRC", "/dev/null/new"], 1, "/dev/null"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    cli: Cli, model_folder: Path, tmp_path: Path, words: list[str], code: int, needed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = cli("convert", *[str(model_folder) if word == "SRC" else word for word in words])
    assert result.code == code
    assert needed in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_terminal_shows_the_result_and_a_log_no_bar(model_folder: Path, tmp_path: Path) -> None:
    shown = Terminal(["convert", model_folder, tmp_path / "a"])
    assert shown.finish() == 0
    assert "wrote" in shown.shown
    process = start("convert", model_folder, tmp_path / "b")
    out, err = process.communicate(timeout=20)
    assert out.startswith(b"wrote")
    assert not {b"\x1b"[0], b"\r"[0]} & set(out + err)


def test_quiet(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    result = cli("convert", model_folder, tmp_path / "new", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
