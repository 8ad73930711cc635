"""`spikelet models`: what can be loaded by name."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from spikelet.cli.terminal import human_bytes, human_count, stdout, table

EPILOG = """\
Models and training runs lie under the spikelet home: SPIKELET_HOME (or DARWIN_KIT_HOME), else
'spikelet' in your cache folder. 'spikelet doctor' shows where that is.

examples:
  spikelet models
  spikelet models --json | jq -r '.[].path'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import spikelet

    models = [describe(name, path) for name, path in spikelet.local_models().items()]
    out = stdout()
    if args.json:
        out.line(json.dumps(models, ensure_ascii=False))
        return 0
    if not models:
        out.line(f"no models: none is bundled, and there are none under {spikelet.home()}")
        return 0
    title = ("name", "type", "parameters", "dtype", "size", "changed", "")
    header, *lines = table([title, *map(_row, models)], right=frozenset({2, 4}))
    out.line(out.paint(header, "bold"))
    for line in lines:
        out.line(line)
    return 0


def describe(name: str, path: Path) -> dict[str, Any]:
    """A model as one line of the list. One that cannot be read is listed with the reason."""
    import spikelet

    row: dict[str, Any] = {"name": name, "path": str(path)}
    try:
        facts = spikelet.inspect(path)
        changed = max(file.stat().st_mtime for file in [path, *_files(path)])
    except (spikelet.SpikeletError, OSError) as error:
        return {**row, "error": str(error)}
    for key in ("model_type", "num_parameters", "dtype", "file_bytes"):
        row[key] = facts[key]
    row["changed"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(changed))
    return row


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    if "error" in model:
        return (model["name"], "-", "-", "-", "-", "-", model["error"])
    return (
        model["name"],
        model["model_type"],
        human_count(model["num_parameters"]),
        model["dtype"],
        human_bytes(model["file_bytes"]),
        model["changed"][:10],
        "",
    )


def _files(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.is_file()] if path.is_dir() else []
