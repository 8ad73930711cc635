"""What all benchmarks share: alternating rounds, medians and ratios, the machine, files.

Machines drift, by half within minutes where memory is shared with strangers. So everything that is
compared is measured in turns, in an order that rotates, and a ratio is that of the same round.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from shapes import DENSITY, SHAPES, WEIGHT_BYTES, Shape, bytes_read, default_cache, model_folder

import spikelet
from spikelet import _spikelet
from spikelet.bench import machine as machines
from spikelet.bench.figures import rounded

RESULTS = Path(__file__).parent / "results"
READ, FMA, INT8 = "read GB/s", "FMA GFLOP/s", "int8 GOP/s"
"""Names under which the roofline stands among the measurements of a round."""

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """The median of several values, and an interval that holds it in 95 of 100 cases."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of values of the same thing."""
        return cls(statistics.median(values), *median_interval(values), len(values))

    def json(self) -> dict[str, float]:
        """For a result file."""
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": self.rounds}


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that hold the median with probability 0.95 or more.

    It assumes nothing about how the values are distributed. Below six values there is no such pair:
    smallest and largest then, which for five hold it with 0.94.
    """
    ordered = sorted(values)
    n = len(ordered)
    outside, tail = 0, 0.0
    while 2 * (tail + math.comb(n, outside) / 2**n) <= 0.05:
        tail += math.comb(n, outside) / 2**n
        outside += 1
    cut = max(outside - 1, 0)
    return ordered[cut], ordered[n - 1 - cut]


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure:
    """How much `above` is of `below`, round by round."""
    return Figure.of([a / b for a, b in zip(above, below, strict=True)])


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same order, begun elsewhere."""
    by %= max(len(items), 1)
    return [*items[by:], *items[:by]]


def alternate(
    works: Mapping[str, Callable[[], float]], rounds: int, patience: float = math.inf
) -> dict[str, list[float]]:
    """Measures everything in turns, `rounds` times after a round that does not count.

    Args:
        works: what to measure: a call does it once and returns its figure.
        rounds: figures of each.
        patience: seconds after which no new round begins, once two counted.

    Returns:
        The figures under the same names; those of one round stand at the same place.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    begun = time.monotonic()
    for round_ in range(rounds + 1):
        if round_ > 2 and time.monotonic() - begun > patience:
            print(f"only {round_ - 1} rounds: they take too long", flush=True)
            break
        for name in rotated(names, round_):
            value = works[name]()
            if round_ > 0:
                found[name].append(value)
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def roofline(threads: int) -> dict[str, Callable[[], float]]:
    """What the machine gives to so many threads, to be measured among the rest."""
    works = {
        READ: lambda: _spikelet.measure_read_bandwidth(threads),
        FMA: lambda: _spikelet.measure_fma_peak(threads),
    }
    if int8 := getattr(_spikelet, "measure_int8_peak", None):
        works[INT8] = lambda: int8(threads)
    return works


def load(folder: Path, dtype: str, threads: int) -> spikelet.Model | None:
    """The model in a format, or None, and a printed line, if this engine does not have it."""
    try:
        return spikelet.load(folder, dtype=dtype, threads=threads)
    except spikelet.UnsupportedError as error:
        left_out(dtype, str(error))
        return None


@cache
def left_out(dtype: str, reason: str) -> None:
    """Says why a format is missing, once."""
    print(f"{dtype} left out: {reason.splitlines()[0]}", flush=True)


def random_ids(shape: Shape, count: int, seed: int = 1) -> list[int]:
    """Tokens to read."""
    ids: list[int] = np.random.default_rng(seed).integers(0, shape.vocab, count).tolist()
    return ids


def density(model: spikelet.Model, ids: Sequence[int]) -> float:
    """Share of non-zero relu² outputs, over all layers, while these tokens are read."""
    return float(np.asarray(model.trace(ids).relu2_density)[:, 1:].mean())


def greedy(model: spikelet.Model, prompt: Sequence[int], tokens: int) -> spikelet.Completion:
    """Continues a prompt by so many most probable tokens, one in each pass."""
    return model.generate(
        prompt, max_new_tokens=tokens, temperature=0.0, ignore_eos=True, seed=0, speculative="off"
    ).run()


def decode_seconds(model: spikelet.Model, prompt: Sequence[int], tokens: int) -> float:
    """Seconds per token of greedy decoding, without the prompt and the first token."""
    return greedy(model, prompt, tokens + 1).stats.decode_seconds / tokens


def decode_share(shape: Shape, dtype: str, dens: float, second: float, read_gb: float) -> float:
    """Bytes of weights that a decode step needs, per second, of what memory gives."""
    return bytes_read(shape, dtype, dens) / second / 1e9 / read_gb


# The machine
cpu_name = machines.cpu_name


def commit() -> str | None:
    """The checkout that is measured, if it is one."""
    try:
        done = subprocess.run(
            ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What a figure has to be read with."""
    return {**machines.machine(), "commit": commit()}


# The command line, tables and files


def parser(doc: str, *, threads: Sequence[int] = (1, 2)) -> argparse.ArgumentParser:
    """Options that all programs have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="fewer rounds; nothing is kept")
    made.add_argument("--rounds", type=int, help="rounds that count")
    made.add_argument("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    made.add_argument("--formats", default=",".join(WEIGHT_BYTES), help="default: %(default)s")
    made.add_argument("--threads", default=",".join(map(str, threads)), help="default: %(default)s")
    made.add_argument(
        "--density",
        default=str(DENSITY),
        help='of relu²: a share, or "dense" for plain random weights; default: %(default)s',
    )
    made.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder that keeps the random models"
    )
    made.add_argument("--json", type=Path, help="result file; default: results/PROGRAM.json")
    return made


@dataclass(frozen=True)
class Plan:
    """The command line, understood."""

    name: str
    quick: bool
    rounds: int | None
    shapes: list[Shape]
    formats: list[str]
    threads: list[int]
    density: float | None
    cache: Path
    json: Path | None
    machine: dict[str, Any]
    """As it was at the beginning: the load average is that of others."""

    @classmethod
    def of(cls, name: str, args: argparse.Namespace) -> Plan:
        """Of the options of `parser`. An unknown name ends the program."""
        shapes, formats = args.shapes.split(","), args.formats.split(",")
        for given, known in ((shapes, SHAPES), (formats, WEIGHT_BYTES)):
            for word in given:
                if word not in known:
                    raise SystemExit(f"{word!r} is none of {', '.join(known)}")
        return cls(
            name=name,
            quick=args.quick,
            rounds=args.rounds,
            shapes=[SHAPES[word] for word in shapes],
            formats=formats,
            threads=[int(word) for word in args.threads.split(",")],
            density=None if args.density == "dense" else float(args.density),
            cache=args.cache,
            json=args.json or (None if args.quick else RESULTS / f"{name}.json"),
            machine=machine(),
        )

    def number_of_rounds(self, quick: int, full: int) -> int:
        """Rounds that count, unless the command line says otherwise."""
        return self.rounds or (quick if self.quick else full)

    def folder(self, shape: Shape) -> Path:
        """The random model."""
        return model_folder(shape, self.cache, self.density)

    def models(self, shape: Shape, threads: int) -> dict[str, spikelet.Model]:
        """The model in every format that the engine has."""
        folder = self.folder(shape)
        loaded = {dtype: load(folder, dtype, threads) for dtype in self.formats}
        return {dtype: model for dtype, model in loaded.items() if model is not None}

    def save(self, rows: Sequence[Mapping[str, Any]], **more: object) -> None:
        """Writes the result file and says so."""
        if self.json is None:
            return
        result = {
            "machine": self.machine,
            "relu2_density": self.density,
            **more,
            "rows": list(rows),
        }
        save(self.json, result)

    def plot_file(self) -> Path | None:
        """Where the plot belongs: beside the result file."""
        return self.json and self.json.with_suffix(".svg")


@dataclass(frozen=True)
class Program:
    """A benchmark that has rows of its own for each model and number of threads."""

    name: str
    doc: str
    measure: Callable[[Plan, Shape, int], list[dict[str, Any]]]
    columns: Sequence[str]
    line: Callable[[dict[str, Any]], str]
    plot: Callable[[Plan, list[dict[str, Any]]], None]
    threads: Sequence[int] = (1, 2)
    shapes: Sequence[str] = tuple(SHAPES)

    def main(self) -> None:
        """Measures what the command line asks for; prints the rows as they come, and keeps them."""
        options = parser(self.doc, threads=self.threads)
        options.set_defaults(shapes=",".join(self.shapes))
        plan = Plan.of(self.name, options.parse_args())
        print(describe(plan.machine))
        print(table_head(self.columns))
        rows: list[dict[str, Any]] = []
        for shape in plan.shapes:
            for threads in plan.threads:
                found = self.measure(plan, shape, threads)
                rows += found
                print("\n".join(map(self.line, found)), flush=True)
        plan.save(rows)
        if rows:
            self.plot(plan, rows)


def save(file: Path, result: Mapping[str, Any]) -> None:
    """Writes a result file and says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(rounded(result), indent=1) + "\n")
    unfinished.replace(file)
    print(f"written: {file}")


def describe(m: Mapping[str, Any]) -> str:
    """The line above a table: what `machine` found."""
    line = f"{m['cpu']}, {m['cores']} cores, {m['isa']}, spikelet {m['spikelet']}"
    return f"{line} ({m['commit']}), {m['date']}, load average {m['load_average']}"


def table_line(cells: Sequence[object]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table_head(names: Sequence[str]) -> str:
    """The first two."""
    return f"{table_line(names)}\n|{'---|' * len(names)}"
