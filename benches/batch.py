"""Decoding many rows at once: tokens per second of all of them, against one row alone.

    python benches/batch.py [--quick] [--shapes ..] [--formats ..] [--threads ..]

Through the public `generate_batch`, greedily, from prompts of one token that differ, so that every
pass decodes; the clock runs over the whole call. Numbers of rows and the roofline are measured in
turns.
"""

from __future__ import annotations

from typing import Any

import harness
import plots
from harness import FMA, READ, Figure, Plan, Program
from shapes import Shape

import spikelet

ROWS = (1, 2, 4, 8, 16, 32, 64)
PROMPT = 1


def rate(model: spikelet.Model, prompts: list[list[int]], tokens: int) -> float:
    """Tokens per second of all rows together."""
    taken = harness.seconds(
        lambda: model.generate_batch(
            prompts,
            max_new_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
            seed=0,
            batch_size=len(prompts),
            speculative="off",
        )
    )
    return len(prompts) * tokens / taken


def measure(plan: Plan, shape: Shape, threads: int) -> list[dict[str, Any]]:
    """Rows of one model with one number of threads."""
    tokens = 6 if plan.quick else 24
    prompts = [harness.random_ids(shape, PROMPT, seed) for seed in range(max(ROWS))]
    made: list[dict[str, Any]] = []
    for dtype, model in plan.models(shape, threads).items():
        found = harness.alternate(
            {
                **harness.roofline(threads),
                **{str(n): lambda n=n, m=model: rate(m, prompts[:n], tokens) for n in ROWS},
            },
            plan.number_of_rounds(2, 6),
        )
        made += (
            {
                "model": shape.name,
                "format": dtype,
                "threads": threads,
                "rows": n,
                "tokens_per_second": Figure.of(found[str(n)]).json(),
                "against_one_row": harness.ratio(found[str(n)], found["1"]).json(),
                "fma_share": Figure.of(
                    [
                        2 * shape.weights_read * r / 1e9 / peak
                        for r, peak in zip(found[str(n)], found[FMA], strict=True)
                    ]
                ).json(),
                "read_gb_per_second": Figure.of(found[READ]).json(),
            }
            for n in ROWS
        )
    return made


COLUMNS = ("model", "format", "threads", "rows", "tok/s of all", "against one row", "of FMA peak")


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    rate, gain = row["tokens_per_second"], row["against_one_row"]
    return harness.table_line(
        (
            row["model"],
            row["format"],
            row["threads"],
            row["rows"],
            f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})",
            f"{gain['median']:.1f} x",
            f"{row['fma_share']['median']:.0%}",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Gain over rows."""
    series = {}
    for key in dict.fromkeys((r["model"], r["format"], r["threads"]) for r in rows):
        own = [r for r in rows if (r["model"], r["format"], r["threads"]) == key]
        gains = [r["against_one_row"]["median"] for r in own]
        name = f"{key[0]} {key[1]}, {key[2]} threads"
        series[name] = ([r["rows"] for r in own], gains, "o-")
    plots.lines(
        plan.plot_file(),
        series,
        ("rows", "tokens per second of all, against one row"),
        f"Decoding rows together; {harness.cpu_name()}",
        log=True,
    )


if __name__ == "__main__":
    Program(
        "batch", str(__doc__), measure, COLUMNS, line, plot, threads=(2,), shapes=("RWKV-4-169M",)
    ).main()
