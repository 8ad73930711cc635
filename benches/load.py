"""Fresh processes: seconds to load a model and to the first token, and peak memory.

    python benches/load.py [--quick] [--shapes ..] [--formats ..]

The model is stored in the format it is loaded in. Warm: its file is in the page cache. Cold: the
system was asked to drop the file from it, which it does with pages that nobody uses; what lies
below the machine may still hold them. Warm and cold runs of all formats alternate.

Peak memory is the largest resident size of the process, mapped files included, as the system
counts it; beside it what the interpreter, numpy and the engine take before a model is loaded. Bytes
of weights are those of the model's file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import harness
import plots
from harness import Figure, Plan, Program
from shapes import Shape

import spikelet

# ru_maxrss would count the parent's memory too: it survives the exec.
CHILD = """
import json, sys, time

def peak(key):
    with open("/proc/self/status") as status:
        return next(1024 * int(l.split()[1]) for l in status if l.startswith(key))

start = time.perf_counter()
import spikelet
imported, bare = time.perf_counter(), peak("VmRSS:")
model = spikelet.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
next(iter(model.generate([1, 2, 3], temperature=0.0, seed=0)))
first = time.perf_counter()
print(json.dumps({
    "import": imported - start, "load": loaded - imported, "first_token": first - loaded,
    "peak": peak("VmHWM:"), "bare": bare, "anonymous": peak("RssAnon:"), "dtype": model.dtype,
}))
"""


def stored(source: Path, dtype: str) -> Path | None:
    """The model stored in a format, made in the cache if it is missing; None if it cannot be."""
    if dtype == "f32":
        return source
    folder = source.with_name(f"{source.name}-{dtype}")
    if not folder.exists():
        try:
            if dtype in ("q8", "q4"):
                spikelet.quantize(source, folder, dtype=dtype)
            else:
                spikelet.convert(source, folder, dtype=dtype)
        except spikelet.SpikeletError as error:
            harness.left_out(dtype, str(error))
            shutil.rmtree(folder, ignore_errors=True)
            return None
    return folder


def weight_file(folder: Path) -> Path:
    """What a load reads."""
    return folder / "model.safetensors"


def evict(file: Path) -> None:
    """Asks the system to drop a file from the page cache."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(file: Path) -> None:
    """Reads a file, so that it is in the page cache."""
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass


def run(folder: Path, threads: int, cold: bool) -> dict[str, Any]:
    """One fresh process."""
    (evict if cold else warm)(weight_file(folder))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder, str(threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(plan: Plan, shape: Shape, threads: int) -> list[dict[str, Any]]:
    """Rows of one model."""
    folders = {dtype: stored(plan.folder(shape), dtype) for dtype in plan.formats}
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {
        (dtype, cold): [] for dtype, folder in folders.items() if folder for cold in (False, True)
    }
    for round_ in range(plan.number_of_rounds(2, 7)):
        for dtype, cold in harness.rotated(list(runs), round_):
            folder = folders[dtype]
            assert folder is not None
            runs[dtype, cold].append(run(folder, threads, cold))
    rows = []
    for (dtype, cold), found in runs.items():
        folder = folders[dtype]
        assert folder is not None
        size = weight_file(folder).stat().st_size
        rows.append(
            {
                "model": shape.name,
                "format": dtype,
                "threads": threads,
                "cold": cold,
                "import_seconds": median(r["import"] for r in found),
                "load_seconds": Figure.of([r["load"] for r in found]).json(),
                "load_to_first_token_seconds": Figure.of(
                    [r["load"] + r["first_token"] for r in found]
                ).json(),
                "weight_bytes": size,
                "peak_bytes": median(r["peak"] for r in found),
                "bare_bytes": median(r["bare"] for r in found),
                "anonymous_bytes": median(r["anonymous"] for r in found),
                "peak_over_weights": median(r["peak"] for r in found) / size,
            }
        )
    return rows


COLUMNS = (
    "model", "format", "threads", "page cache", "load", "load to first token", "weights",
    "peak", "peak / weights", "before the load",
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    load, first = row["load_seconds"], row["load_to_first_token_seconds"]
    return harness.table_line(
        (
            row["model"],
            row["format"],
            row["threads"],
            "cold" if row["cold"] else "warm",
            f"{load['median']:.3f} s",
            f"{first['median']:.3f} s ({first['low']:.3f} to {first['high']:.3f})",
            f"{row['weight_bytes'] / 1e6:.0f} MB",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            f"{row['peak_over_weights']:.2f} x",
            f"{row['bare_bytes'] / 1e6:.0f} MB",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Seconds to the first token."""
    groups = list(dict.fromkeys((row["model"], row["format"]) for row in rows))
    times = {
        (row["model"], row["format"], row["cold"]): row["load_to_first_token_seconds"]["median"]
        for row in rows
    }
    plots.bars(
        plan.plot_file(),
        [f"{model}\n{dtype}" for model, dtype in groups],
        {
            name: [times.get((*group, cold)) for group in groups]
            for name, cold in (("file in the page cache", False), ("file dropped from it", True))
        },
        "seconds from load to the first token",
        f"Fresh processes; {harness.cpu_name()}",
    )


if __name__ == "__main__":
    Program(
        "load", str(__doc__), measure, COLUMNS, line, plot, threads=(2,), shapes=("RWKV-4-169M",)
    ).main()
