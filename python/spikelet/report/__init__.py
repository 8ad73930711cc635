"""Reports of training runs: one HTML file that shows them, alone or side by side, offline.

    spikelet report RUN...

Reads the files that a run leaves behind, of a running one too. It needs no PyTorch; the spike
raster is made by the engine from the model that the run exported.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spikelet._spikelet import __version__
from spikelet.errors import OptionError, SpikeletError
from spikelet.report.configs import compare
from spikelet.report.page import make_page
from spikelet.report.run import RunFiles, gather, read_files

__all__ = ["build_report", "collect", "write_report"]


def build_report(runs: Sequence[str], *, text: str | None = None) -> str:
    """The report of one or several runs as the text of an HTML file.

    Args:
        runs: names of runs, or paths of their folders.
        text: for the spike raster. None: the last sample of the first run that has any, else a
            sentence of our own. All runs read the same text.

    Raises:
        NotFoundError: a run is not there, or its folder holds nothing to show.
        OptionError: no runs, one of them twice, or an empty text.
    """
    return make_page(collect(runs, text=text, raster=True))


def write_report(runs: Sequence[str], path: Path, *, text: str | None = None) -> None:
    """Writes the report of `build_report` to a file, which appears when it is complete."""
    page = build_report(runs, text=text)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent or ".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        # mkstemp lets nobody else read; a report is a file like any other.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def collect(
    runs: Sequence[str], *, text: str | None = None, raster: bool = False, live: bool = False
) -> dict[str, Any]:
    """All that the page shows, as one JSON document."""
    if not runs:
        raise OptionError("option `runs`: there is none; a report needs at least one")
    if text is not None and not text.strip():
        raise OptionError("option `text`: it is empty; a raster needs at least one token")
    found = [read_files(run, may_be_empty=live) for run in runs]
    folders = [files.folder.resolve() for files in found]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise OptionError(f"option `runs`: {runs[index]} is given twice")
    _tell_apart(found)
    shown = [gather(files) for files in found]
    for run in shown:
        # Who asks for a live page is the process that trains; not every trainer writes its number.
        if live and run["state"] == "stopped":
            run["state"] = "running"
    if raster:
        _add_rasters(found, shown, text)
    names = [run["name"] for run in shown]
    return {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}",
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "live": live,
        "runs": shown,
        "configs": compare([files.configs for files in found]),
    }


def _tell_apart(found: Sequence[RunFiles]) -> None:
    """Gives runs of the same name in different places the name of their folder in front."""
    names = [files.name for files in found]
    for files in found:
        if names.count(files.name) > 1:
            files.name = str(files.folder)


def _add_rasters(
    found: Sequence[RunFiles], shown: Sequence[dict[str, Any]], text: str | None
) -> None:
    from spikelet.report.raster import DEFAULT_TEXT, make_raster

    last = (run["samples"][-1] for run in shown if run["samples"])
    sample = next(last, {"prompt": "", "text": ""})
    text = text or sample["prompt"] + sample["text"] or DEFAULT_TEXT
    for files, run in zip(found, shown, strict=True):
        if not run["is_language"]:
            continue
        if not (files.folder / "model.safetensors").is_file():
            run["raster_note"] = (
                "The run has no exported model yet; the raster comes with the first one."
            )
            continue
        try:
            run["raster"] = make_raster(files.folder, text)
        except (SpikeletError, OSError) as error:
            run["raster_note"] = f"The exported model could not read the text: {error}"
