"""What a user waits for: import, load, the first token; and the size of the wheel.

    python benches/startup.py [--wheel FILE]

Medians of fresh processes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

RUNS = 9

IMPORT = """
import time; start = time.perf_counter()
import spikelet
print(time.perf_counter() - start)
"""

FIRST_TOKEN = """
import time
import spikelet
start = time.perf_counter()
model = spikelet.load()
loaded = time.perf_counter()
next(iter(model.generate("Once upon a time", seed=1)))
print(loaded - start, time.perf_counter() - loaded)
"""


def medians(code: str) -> list[float]:
    """Medians of the figures that fresh processes print."""
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        runs.append([float(figure) for figure in done.stdout.split()])
    return [statistics.median(figures) for figures in zip(*runs, strict=True)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="a built wheel, to weigh it")
    args = parser.parse_args()
    (imported,) = medians(IMPORT)
    loaded, first = medians(FIRST_TOKEN)
    print(f"import spikelet            {imported * 1e3:7.1f} ms   (target: below 200)")
    print(f"load() the bundled model   {loaded * 1e3:7.1f} ms")
    print(f"first token after load     {first * 1e3:7.1f} ms   (target: below 300)")
    if args.wheel:
        with zipfile.ZipFile(args.wheel) as wheel:
            model = sum(i.compress_size for i in wheel.infolist() if "/bundled/" in i.filename)
        total = args.wheel.stat().st_size
        print(f"wheel                      {total / 1e6:7.2f} MB")
        print(f"wheel without the model    {(total - model) / 1e6:7.2f} MB   (target: below 10)")


if __name__ == "__main__":
    main()
