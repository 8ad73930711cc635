"""Names, folders and checkpoints of training runs. Without torch: command line and web use it too.

A run NAME lies in ``home()/runs/NAME``: the model folder that the engine loads, and beside the
model the folder ``training`` with configurations, log and checkpoints (one ``.pth`` file each).

DarwinKit keeps the same files flat in ``models/lm/NAME`` or ``models/base/NAME`` (in its
documents: ``base/NAME``) under its own home. Those folders are found and read, never written.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikelet._models import DARWINKIT_HOMES, home
from spikelet.errors import FormatError, NotFoundError, OptionError

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DARWINKIT_LAYOUTS = ("models/lm", "models/base", "base")
_DARWINKIT_DEFAULT = "~/.cache/darwinkit"
_ITERATION = re.compile(r"iter-(\d+)-ckpt")
FINAL = "complete"
"""Stem of the checkpoint that stands at the end of a run."""


def valid_name(name: str, what: str = "name") -> str:
    """Return a name that can be a file name everywhere and never leads out of its folder."""
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{what} is {name!r}; it is made of letters, digits, '.', '_' and '-', "
            "and does not begin with '.'"
        )
    return name


def runs_root() -> Path:
    """Return the folder of the runs that have no other root."""
    return home() / "runs"


def run_folder(name: str, root: Path | None = None) -> Path:
    """Return where the run of that name is, or will be, written."""
    return (runs_root() if root is None else root) / valid_name(name)


def training_folder(folder: Path) -> Path:
    """Return where a run keeps its checkpoints: ``training``, or DarwinKit's flat folder itself."""
    own = folder / "training"
    if not own.is_dir() and (_weight_files(folder) or (folder / "trainer_config.json").is_file()):
        return folder
    return own


def _weight_files(folder: Path) -> list[Path]:
    # A name with a dot in front is a file that is still being written.
    return [path for path in folder.glob("*.pth") if not path.name.startswith(".")]


def step_of(checkpoint: Path) -> float:
    """Return the step that a checkpoint's name tells; the final one stands behind all others."""
    found = _ITERATION.fullmatch(checkpoint.stem)
    return int(found[1]) if found else math.inf


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of the run in ``folder`` by time of writing, the newest last."""
    files = _weight_files(training_folder(folder))
    return sorted(files, key=lambda path: (_written(path), step_of(path)))


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # deleted since, to make room for a newer one
        return 0


def find_checkpoint(folder: Path, checkpoint: str | None = None) -> Path:
    """Return one checkpoint of the run in ``folder``.

    Args:
        folder: of the run.
        checkpoint: its name with or without ``.pth``; None for the newest.

    Raises:
        NotFoundError: there is none of that name; the message names those there are.
    """
    known = checkpoints(folder)
    if checkpoint is None:
        if known:
            return known[-1]
        raise NotFoundError(f"{training_folder(folder)} holds no checkpoint")
    stem = checkpoint.removesuffix(".pth")
    for path in known:
        if path.stem == stem:
            return path
    names = ", ".join(path.stem for path in known) or "none"
    raise NotFoundError(f"{folder.name} has no checkpoint {stem!r} (there are: {names})")


def parse_resume(resume: str) -> tuple[str, str | None]:
    """Split ``"name"`` or ``"name:checkpoint"``."""
    name, colon, checkpoint = resume.partition(":")
    valid_name(name, "name of the run")
    if not colon:
        return name, None
    return name, valid_name(checkpoint.removesuffix(".pth"), "checkpoint")


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk."""

    name: str
    folder: Path
    checkpoints: list[Path]
    """By time of writing, the newest last."""
    running: bool
    """A process is training it now."""
    finished: bool
    """Its final checkpoint is there."""


def read_run(folder: Path) -> Run:
    """Look at the run in ``folder``."""
    found = checkpoints(folder)
    finished = any(path.stem == FINAL for path in found)
    return Run(folder.name, folder, found, _is_running(training_folder(folder)), finished)


def list_runs(root: Path | None = None) -> list[Run]:
    """Return all runs of ``root`` by name; without one those of the home and of DarwinKit's."""
    found: dict[str, Run] = {}
    for place in _places(root):
        if place.is_dir():
            for folder in sorted(place.iterdir()):
                if _is_run(folder):
                    found.setdefault(folder.name, read_run(folder))
    return sorted(found.values(), key=lambda run: run.name)


def find_run(name: str, root: Path | None = None) -> Path:
    """Return the folder of an existing run, one of DarwinKit's own included.

    Raises:
        NotFoundError: there is none of that name; the message names those there are.
    """
    valid_name(name)
    for place in _places(root):
        if _is_run(place / name):
            return place / name
    known = ", ".join(run.name for run in list_runs(root)) or "none"
    looked = runs_root() if root is None else root
    raise NotFoundError(f"there is no run {name!r} (known: {known}; searched: {looked})")


def _places(root: Path | None) -> list[Path]:
    if root is not None:
        return [root]
    given = [os.environ[name] for name in DARWINKIT_HOMES if os.environ.get(name)]
    homes = [Path(place).expanduser() for place in given or [_DARWINKIT_DEFAULT]]
    return [runs_root(), *(place / layout for place in homes for layout in _DARWINKIT_LAYOUTS)]


def _is_run(folder: Path) -> bool:
    return training_folder(folder).is_dir() and _NAME.fullmatch(folder.name) is not None


def _is_running(folder: Path) -> bool:
    """Tell whether the process of the ``pid`` file still lives.

    A killed one leaves its file, and its number may since belong to another: one that began after
    the file was written is not it.
    """
    path = folder / "pid"
    try:
        process = int(path.read_text().split()[0])
        written = path.stat().st_mtime
        # Fields behind the name, which may hold anything: state first, start time as the 20th.
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return False
    started = time.time() - uptime + int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return stat[0] != "Z" and started < written + 2


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the error names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds {type(value).__name__}; an object is needed")
    return value
