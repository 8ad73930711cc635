"""Writes the tables of README.md from the result files, so that no figure is typed by hand.

    python benches/table.py

First what was promised and what was reached, then the rows of every program. What has not been
measured is called open.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from gpu_check import summary

from spikelet.bench import Report

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- begin: written by table.py -->", "<!-- end -->"
PROGRAMS = {
    "peers": "Beside other engines",
    "decode": "Decoding one row",
    "prefill": "Reading a prompt of 512 tokens",
    "verify": "A pass over several tokens",
    "batch": "Several rows at once",
    "load": "Loading",
    "contention": "Beside a process that keeps a core busy",
    "density": "How sparse trained models are",
}
SPECULATION = "speculation-"
"""What results of `speculation.py` begin with; the rest is the name of the section."""
DRAWN = ("speedup", "break-even", "rounds")
"""Of its charts, those on the page."""
OPEN = "open"
SIXTEEN = ("bf16", "f16")
ALL = ("f32", *SIXTEEN, "q8", "q4")

Results = Mapping[str, Mapping[str, Any]]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What was reached."""

    measured: str
    met: bool
    best_peer: str = ""
    share: str = ""


@dataclass(frozen=True)
class Target:
    """A promise: what, and how to find whether it holds."""

    what: str
    format: str
    needed: str
    find: Callable[[Results], Found | None]

    def line(self, results: Results) -> str:
        """Its line of the table."""
        found = self.find(results) or Found(OPEN, met=False)
        met = OPEN if found.measured == OPEN else ("yes" if found.met else "**no**")
        return harness.table_line(
            (
                self.what,
                self.format,
                self.needed,
                found.measured,
                found.best_peer,
                found.share,
                met,
            )
        )


def rows(results: Results, program: str, **keys: object) -> list[Row]:
    """Rows of a result file with these values."""
    found = results.get(program, {}).get("rows", [])
    return [row for row in found if all(row.get(key) == value for key, value in keys.items())]


def best_of(found: Sequence[Row]) -> Row:
    """The quickest."""
    return max(found, key=lambda row: float(row["tokens_per_second"]["median"]))


def speed(
    model: str,
    task: str,
    formats: Sequence[str],
    label: str,
    least: float,
    elsewhere: tuple[str, float],
    peer: str = "",
) -> Target:
    """At least so many times the speed of a peer; of several formats the quickest counts.

    Args:
        model: the shape.
        task: `"decode"` or `"prefill"`.
        formats: those that count.
        label: their name in the table.
        least: how many times.
        elsewhere: the peer and its tokens per second as they were measured on another machine.
        peer: its name here if it runs in turns with this engine; then this is what decides.
    """
    name, figure = elsewhere

    def find(results: Results) -> Found | None:
        here = rows(results, "peers", model=model, task=task)
        own = [row for row in here if row["engine"] == "spikelet" and row["format"] in formats]
        if not own:
            return None
        row = best_of(own)
        rate, other = row["tokens_per_second"]["median"], row["against"]
        beside = f"{other['median']:.1f} x {other['peer']}" if other else ""
        gain = rate / figure
        rivals = [row for row in here if row["engine"] == peer]
        if label not in ("fastest", "q8", "q4"):
            rivals = [rival for rival in rivals if rival["format"] in formats]
        if peer:
            rival = best_of(rivals)["tokens_per_second"]["median"] if rivals else figure
            gain = rate / rival
        measured = f"{rate:.4g} tok/s ({row['format']}) = {gain:.2f} x"
        return Found(measured, gain >= least, beside, f"{row['share']['median']:.0%}")

    what = {"decode": "decode", "prefill": "prefill of 512"}[task]
    given = f"{name} of the same run (elsewhere {figure:g})" if peer else f"{name} {figure:g} tok/s"
    return Target(f"{model} {what}", label, f"{least:g} x {given}", find)


def bandwidth(model: str, dtype: str, least: float) -> Target:
    """Decoding reaches a share of the measured bandwidth, with the most threads."""

    def find(results: Results) -> Found | None:
        own = rows(results, "decode", model=model, format=dtype)
        if not own:
            return None
        row = max(own, key=lambda row: int(row["threads"]))
        share = row["bandwidth_share"]["median"]
        rate = f"{row['tokens_per_second']['median']:.4g} tok/s, {row['threads']} threads"
        return Found(rate, share >= least, share=f"{share:.0%}")

    return Target(f"{model} decode, share of bandwidth", dtype, f"{least:.0%}", find)


def passes(dtype: str, tokens: int, most: float) -> Target:
    """A pass over several tokens costs at most so much."""

    def find(results: Results) -> Found | None:
        own = rows(results, "verify", model="SpikeGPT-216M", format=dtype, tokens=tokens)
        if not own:
            return None
        row = max(own, key=lambda row: int(row["threads"]))
        cost = row["cost"]["median"]
        bound = f"the roofline alone: {row['bound']:.2f} x"
        return Found(f"{cost:.2f} x ({bound})", cost <= most, share=f"{row['roofline_share']:.0%}")

    return Target(f"SpikeGPT-216M, a pass over {tokens} tokens", dtype, f"at most {most:g} x", find)


def batches(results: Results) -> Found | None:
    """16 rows against one."""
    own = rows(results, "batch", model="RWKV-4-169M", format="q8", rows=16)
    if not own:
        return None
    gain = own[0]["against_one_row"]["median"]
    return Found(f"{gain:.1f} x ({own[0]['tokens_per_second']['median']:.4g} tok/s)", gain >= 6)


def memory(results: Results) -> Found | None:
    """Peak against weights: the worse of the 16-bit formats."""
    own = [row for row in rows(results, "load", model="RWKV-4-169M") if row["format"] in SIXTEEN]
    if not own:
        return None
    worst = max(float(row["peak_over_weights"]) for row in own)
    return Found(f"{worst:.2f} x", worst <= 1.15)


def first_token(results: Results) -> Found | None:
    """Seconds with the file in the page cache: the worse of the 16-bit formats."""
    own = rows(results, "load", model="RWKV-4-169M", cold=False)
    own = [row for row in own if row["format"] in SIXTEEN]
    if not own:
        return None
    worst = max(float(row["load_to_first_token_seconds"]["median"]) for row in own)
    return Found(f"{worst:.2f} s", worst <= 0.2)


def neighbour(results: Results) -> Found | None:
    """Two threads beside a busy process against one quiet thread."""
    own = rows(results, "contention", model="RWKV-4-169M", format="q8")
    if not own:
        return None
    kept = own[0]["busy_against_one_quiet_thread"]["median"]
    return Found(f"{kept:.2f} x", kept >= 0.9)


def targets() -> list[Target]:
    """All of them, in the order of the table."""
    made = []
    decode = {
        "RWKV-4-169M": ((110, 1.1), (129, 1.4), (166, 1.8), (213, 2.0)),
        "RWKV-4-430M": ((25, 1.1), (46, 1.3), (63, 1.8), (74, 2.2)),
    }
    kinds = (("f32", ("f32",)), ("16 bit", SIXTEEN), ("q8", ("q8",)), ("q4", ("q4",)))
    for model, figures in decode.items():
        for (label, formats), (figure, least) in zip(kinds, figures, strict=True):
            made.append(speed(model, "decode", formats, label, least, ("rwkv.cpp", figure)))
    spiking, plain = "SpikeGPT-216M", "plain PyTorch"
    for dtype, least in (("bf16", 2), ("q8", 4), ("q4", 6)):
        made.append(speed(spiking, "decode", (dtype,), dtype, least, (plain, 68), "plain"))
    made += [
        speed("RWKV-4-169M", "prefill", ("f32",), "f32", 1.5, ("rwkv", 764), "rwkv"),
        speed("RWKV-4-169M", "prefill", ALL, "fastest", 2, ("rwkv", 1922), "rwkv"),
        speed(spiking, "prefill", ALL, "fastest", 25, (plain, 81), "plain"),
        Target("RWKV-4-169M, 16 rows decoding", "q8", "6 x one row", batches),
        *(passes(dtype, t, most) for dtype in ("bf16", "q8") for t, most in ((4, 1.2), (8, 1.6))),
        Target("RWKV-4-169M, peak memory", "16 bit", "at most 1.15 x weights", memory),
        Target("RWKV-4-169M, load to first token", "16 bit", "at most 0.2 s", first_token),
        Target(
            "RWKV-4-169M, 2 threads beside a busy process",
            "q8",
            "0.9 x one quiet thread",
            neighbour,
        ),
    ]
    shares = (("f32", 0.85), ("bf16", 0.85), ("q8", 0.75))
    made += [
        bandwidth(model, dtype, least)
        for model in ("RWKV-4-169M", "RWKV-4-430M", spiking)
        for dtype, least in shares
    ]
    return made


TARGET_COLUMNS = (
    "what", "format", "needed", "measured", "best peer of the same run", "of roofline", "met",
)  # fmt: skip


NOTE = """\
rwkv.cpp is in no package index: its figures were measured once, on a quiet machine of another kind
(Zen 5, 2 cores), and stay as they are. Other peers ran in turns with this engine. *Best peer of the
same run*: of equal or higher precision; `plain` is SpikeGPT in plain PyTorch, token by token
(elsewhere: the authors' code, bf16)."""


def render(results: Results) -> str:
    """The text between the marks."""
    parts = [
        "### What was promised",
        NOTE,
        "\n".join(
            [harness.table_head(TARGET_COLUMNS), *(target.line(results) for target in targets())]
        ),
    ]
    for program, title in PROGRAMS.items():
        if program not in results:
            continue
        result = results[program]
        module = importlib.import_module(program)
        parts += [
            f"### {title}",
            f"`{program}.py`, {harness.describe(result['machine'])}:",
            f"![{title}](results/{program}.svg)",
            "\n".join([harness.table_head(module.COLUMNS), *map(module.line, result["rows"])]),
        ]
    return "\n\n".join(parts)


def speculation(file: Path) -> str:
    """The section of a result of `speculation.py`."""
    name = file.stem.removeprefix(SPECULATION)
    charts = "\n".join(f"![{chart}](results/{file.stem}/{chart}.svg)" for chart in DRAWN)
    return f"### Speculative decoding: {name}\n\n{Report.read(file).table()}\n\n{charts}"


def replaced(page: str, text: str) -> str:
    """A page with other text between the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name}: the lines {BEGIN!r} and {END!r} are needed")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> None:
    """Reads all result files and writes the page."""
    results = {
        name: json.loads(file.read_text())
        for name in PROGRAMS
        if (file := harness.RESULTS / f"{name}.json").exists()
    }
    files = sorted(harness.RESULTS.glob(f"{SPECULATION}*.json"))
    gpu = summary.read(harness.RESULTS)
    sections = [render(results), *map(speculation, files)]
    text = "\n\n".join([*sections, *([summary.render(gpu, level=3).rstrip()] if gpu else [])])
    README.write_text(replaced(README.read_text(), text))
    names = [*results, *(file.stem for file in files), *(f"gpu-{part}" for part in gpu)]
    print(f"written: {README.name}, from {', '.join(names) or 'no results'}")


if __name__ == "__main__":
    main()
