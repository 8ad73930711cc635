"""Reading a prompt of 512 tokens, beside the arithmetic peak of the same rounds.

    python benches/prefill.py [--quick] [--shapes ..] [--formats ..] [--threads ..]

All formats of a model and the peak of as many threads are measured in turns. The share counts the
multiply-adds of a dense pass with logits after the last token, two operations each: of the f32
peak for float formats, of the int8 peak for quantised ones where this engine can measure it.
"""

from __future__ import annotations

from typing import Any

import harness
import plots
from harness import FMA, INT8, Figure, Plan, Program
from shapes import Shape

PROMPT = 512


def measure(plan: Plan, shape: Shape, threads: int) -> list[dict[str, Any]]:
    """Rows of one model with one number of threads."""
    models = plan.models(shape, threads)
    prompt = harness.random_ids(shape, PROMPT)

    def seconds(dtype: str) -> float:
        state = models[dtype].new_state()
        return harness.seconds(lambda: models[dtype].forward(prompt, state, all_logits=False))

    found = harness.alternate(
        {
            **harness.roofline(threads),
            **{dtype: lambda d=dtype: seconds(d) for dtype in models},
        },
        plan.number_of_rounds(2, 6),
    )
    operations = 2 * shape.multiply_adds(PROMPT) / 1e9
    rows = []
    for dtype in models:
        peak = found.get(INT8 if dtype in ("q8", "q4") else FMA)
        rates = [operations / t for t in found[dtype]]
        rows.append(
            {
                "model": shape.name,
                "format": dtype,
                "threads": threads,
                "prompt": PROMPT,
                "tokens_per_second": Figure.of([PROMPT / t for t in found[dtype]]).json(),
                "gflop_per_second": Figure.of(rates).json(),
                "peak_gflop_per_second": peak and Figure.of(peak).json(),
                "peak_share": peak and harness.ratio(rates, peak).json(),
            }
        )
    return rows


COLUMNS = ("model", "format", "threads", "tok/s", "G operations/s", "of peak", "peak")


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    rate, share, peak = (
        row[key] for key in ("tokens_per_second", "peak_share", "peak_gflop_per_second")
    )
    return harness.table_line(
        (
            row["model"],
            row["format"],
            row["threads"],
            f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})",
            f"{row['gflop_per_second']['median']:.0f}",
            f"{share['median']:.0%}" if share else "-",
            f"{peak['median']:.0f}" if peak else "-",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Tokens per second of every format."""
    plots.bars_of_formats(
        plan.plot_file(),
        rows,
        f"Reading a prompt of {PROMPT} tokens; {harness.cpu_name()}",
    )


if __name__ == "__main__":
    Program("prefill", str(__doc__), measure, COLUMNS, line, plot).main()
