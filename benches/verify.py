"""What a pass over T tokens costs, against a pass over one: the price of checking a draft.

    python benches/verify.py [--quick] [--shapes ..] [--formats ..] [--threads ..]

Every pass gives the logits after all its tokens, as checking needs them, copied to an array. All
lengths and the roofline are measured in turns, one format after the other.

The bound beside it is what the same pass would cost if memory or arithmetic alone decided,
whichever is slower, over what one token would: weights once at the measured bandwidth,
multiply-adds of all tokens at the measured peak, rows of `ffn.value` that are zero in all tokens
left out of both. Quantised formats multiply integers; without a measured int8 peak their bound is
that of memory.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import harness
import plots
from harness import FMA, INT8, READ, Plan, Program
from shapes import DENSITY, Shape, bytes_read, weights_read

import spikelet

TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def bound(shape: Shape, dtype: str, density: float, tokens: int, found: dict[str, float]) -> float:
    """Seconds of a pass if nothing but the roofline counted."""
    memory = bytes_read(shape, dtype, density, tokens) / 1e9 / found[READ]
    peak = found.get(INT8) if dtype in ("q8", "q4") else found[FMA]
    work = 2 * tokens * weights_read(shape, density, tokens) / 1e9
    arithmetic = work / peak if peak else 0.0
    return max(memory, arithmetic)


def measure(plan: Plan, shape: Shape, threads: int) -> list[dict[str, Any]]:
    """Rows of one model with one number of threads."""
    ids = harness.random_ids(shape, 512)
    repeats = 2 if plan.quick else 4
    density = DENSITY if plan.density is None else plan.density
    made = []
    for dtype, model in plan.models(shape, threads).items():
        state = model.new_state()
        model.forward(ids[:8], state)

        def seconds(tokens: int, m: spikelet.Model = model, s: spikelet.State = state) -> float:
            starts = [(17 * i) % (len(ids) - tokens) for i in range(repeats)]
            return median(
                harness.seconds(lambda at=at: m.forward(ids[at : at + tokens], s)) for at in starts
            )

        found = harness.alternate(
            {**harness.roofline(threads), **{str(t): lambda t=t: seconds(t) for t in TOKENS}},
            plan.number_of_rounds(3, 9),
        )
        given = {name: median(found[name]) for name in harness.roofline(threads)}
        one = bound(shape, dtype, density, 1, given)
        made += [
            {
                "model": shape.name,
                "format": dtype,
                "threads": threads,
                "tokens": t,
                "milliseconds": 1e3 * median(found[str(t)]),
                "cost": harness.ratio(found[str(t)], found["1"]).json(),
                "bound": bound(shape, dtype, density, t, given) / one,
                "roofline_share": bound(shape, dtype, density, t, given) / median(found[str(t)]),
            }
            for t in TOKENS
        ]
    return made


COLUMNS = ("model", "format", "threads", "tokens", "ms", "cost", "bound", "of roofline")


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    cost = row["cost"]
    return harness.table_line(
        (
            row["model"],
            row["format"],
            row["threads"],
            row["tokens"],
            f"{row['milliseconds']:.2f}",
            f"{cost['median']:.2f} x ({cost['low']:.2f} to {cost['high']:.2f})",
            f"{row['bound']:.2f} x",
            f"{row['roofline_share']:.0%}",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Cost and bound over tokens, for the first model and the most threads."""
    model, threads = rows[0]["model"], max(row["threads"] for row in rows)
    series = {}
    for dtype in plan.formats:
        key = (model, threads, dtype)
        own = [r for r in rows if (r["model"], r["threads"], r["format"]) == key]
        tokens = [r["tokens"] for r in own]
        if own:
            series[dtype] = (tokens, [r["cost"]["median"] for r in own], "o-")
            series[f"{dtype}, bound"] = (tokens, [r["bound"] for r in own], ":")
    plots.lines(
        plan.plot_file(),
        series,
        ("tokens in a pass", "time, against a pass over one token"),
        f"{model}, {threads} threads; {harness.cpu_name()}",
    )


if __name__ == "__main__":
    Program("verify", str(__doc__), measure, COLUMNS, line, plot, shapes=("SpikeGPT-216M",)).main()
