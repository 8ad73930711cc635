"""Names and folders of runs, ours and DarwinKit's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import spikelet
from spikelet import FormatError, NotFoundError, OptionError
from spikelet.training import runs


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path / "ours"))
    for name in ("DARWIN_KIT_HOME", "DSPIKE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "ours"


def make_run(folder: Path, *names: str, flat: bool = False) -> Path:
    """A run whose checkpoints were written in the order of the names, a second apart."""
    place = folder if flat else folder / "training"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "trainer_config.json").write_text("{}")
    for second, name in enumerate(names):
        (place / name).write_bytes(b"")
        os.utime(place / name, (1_700_000_000 + second,) * 2)
    return folder


def test_t09_our_variable_counts_before_darwinkits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPIKE_HOME", str(tmp_path / "page"))
    monkeypatch.setenv("DARWIN_KIT_HOME", str(tmp_path / "code"))
    assert spikelet.home() == tmp_path / "ours"
    monkeypatch.delenv("SPIKELET_HOME")
    assert spikelet.home() == tmp_path / "code"
    monkeypatch.delenv("DARWIN_KIT_HOME")
    assert spikelet.home() == tmp_path / "page"
    monkeypatch.delenv("DSPIKE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert spikelet.home() == tmp_path / "cache" / "spikelet"


@pytest.mark.parametrize("layout", ["models/lm", "models/base", "base"])
def test_t08_folders_of_darwinkit_are_found_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    theirs = tmp_path / "darkit"
    monkeypatch.setenv("DARWIN_KIT_HOME", str(theirs))
    folder = make_run(theirs / layout / "old", "iter-5-ckpt.pth", "complete.pth", flat=True)
    (theirs / layout / "fork" / "edited").mkdir(parents=True)
    assert runs.find_run("old") == folder
    assert runs.training_folder(folder) == folder
    assert runs.find_checkpoint(folder).name == "complete.pth"
    assert [run.name for run in runs.list_runs()] == ["old"]
    # What is written goes to our own home all the same.
    assert runs.run_folder("old") == spikelet.home() / "runs" / "old"


def test_t08_darwinkits_default_home_is_searched_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "user/.cache/darwinkit/models/lm/old", "complete.pth", flat=True)
    assert runs.find_run("old") == folder


def test_our_run_hides_theirs_of_the_same_name(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARWIN_KIT_HOME", str(tmp_path / "darkit"))
    make_run(tmp_path / "darkit" / "models" / "lm" / "fox", "complete.pth", flat=True)
    ours = make_run(own_home / "runs" / "fox")
    assert runs.find_run("fox") == ours
    assert [run.folder for run in runs.list_runs()] == [ours]


@pytest.mark.parametrize("name", ["fox", "a.b_c-9", "_x", "-", "TEST_MODEL_12"])
def test_good_names(name: str, own_home: Path) -> None:
    assert runs.run_folder(name) == own_home / "runs" / name
    assert runs.run_folder(name, Path("/elsewhere")) == Path("/elsewhere") / name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../x", "a\\b", "a b", "ä", "a\n"])
def test_a_name_is_one_plain_path_component(name: str) -> None:
    for call in (runs.run_folder, runs.find_run, runs.parse_resume):
        with pytest.raises(OptionError, match="it is made of letters"):
            call(name)


def test_checkpoints_by_time_then_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "iter-20-ckpt.pth", "iter-3-ckpt.pth", "complete.pth")
    place = folder / "training"
    (place / ".complete.pth.x1y2.pth").write_bytes(b"half")  # being written
    assert [p.stem for p in runs.checkpoints(folder)] == ["iter-20-ckpt", "iter-3-ckpt", "complete"]
    for path in place.glob("*.pth"):
        os.utime(path, (1_700_000_000,) * 2)
    assert [p.stem for p in runs.checkpoints(folder)] == ["iter-3-ckpt", "iter-20-ckpt", "complete"]


def test_a_checkpoint_by_name_or_the_newest(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "complete.pth", "iter-7-ckpt.pth")
    assert runs.find_checkpoint(folder).stem == "iter-7-ckpt"
    for name in ("complete", "complete.pth"):
        assert runs.find_checkpoint(folder, name).stem == "complete"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'iter-8-ckpt'.*complete, iter-7"):
        runs.find_checkpoint(folder, "iter-8-ckpt")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        runs.find_checkpoint(make_run(tmp_path / "empty"))


def test_a_missing_run_names_those_there_are(own_home: Path) -> None:
    make_run(own_home / "runs" / "fox")
    with pytest.raises(NotFoundError, match=r"no run 'fux' \(known: fox; searched: "):
        runs.find_run("fux")


def test_resume_names_a_run_and_perhaps_a_checkpoint() -> None:
    assert runs.parse_resume("fox") == ("fox", None)
    assert runs.parse_resume("fox:iter-10-ckpt.pth") == ("fox", "iter-10-ckpt")
    with pytest.raises(OptionError, match=r"checkpoint is '\.\./x'"):
        runs.parse_resume("fox:../x")


def test_a_run_says_whether_it_is_running_or_finished(own_home: Path) -> None:
    folder = make_run(own_home / "runs" / "fox", "iter-1-ckpt.pth")
    assert (runs.read_run(folder).running, runs.read_run(folder).finished) == (False, False)
    pid = folder / "training" / "pid"
    pid.write_text(f"{os.getpid()}")
    assert runs.read_run(folder).running
    os.utime(pid, (1_700_000_000,) * 2)  # of a process long gone, whose number is ours now
    assert not runs.read_run(folder).running
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for text in (str(gone.pid), "", "x"):
        pid.write_text(text)
        assert not runs.read_run(folder).running
    (folder / "training" / "complete.pth").write_bytes(b"")
    assert runs.read_run(folder).finished


def test_a_killed_process_that_nobody_waited_for_runs_no_more(own_home: Path) -> None:
    folder = make_run(own_home / "runs" / "fox")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (folder / "training" / "pid").write_text(str(process.pid))
        assert runs.read_run(folder).running
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not runs.read_run(folder).running


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, NotFoundError, "no such file"),
        ("{", FormatError, "cannot be read as JSON"),
        ("[1]", FormatError, "holds list; an object is needed"),
    ],
)
def test_json_errors_name_the_file(
    tmp_path: Path, content: str | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        runs.read_json(path)
    assert str(path) in str(caught.value)


def test_runs_need_no_torch() -> None:
    code = "import sys, spikelet.training.runs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
