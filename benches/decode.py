"""Greedy decoding of one text, beside the memory bandwidth of the same rounds.

    python benches/decode.py [--quick] [--shapes ..] [--formats ..] [--threads ..]

All formats of a model and the bandwidth of as many threads are measured in turns. The share is the
bytes of weights that the tokens needed, per second, of the bandwidth: rows of `ffn.value` that
relu² made zero are not counted, at the density of the very tokens that were decoded, and neither
are the embedding, states and activations.
"""

from __future__ import annotations

from typing import Any

import harness
import plots
from harness import Figure, Plan, Program
from shapes import Shape, bytes_read

PROMPT = 8


def measure(plan: Plan, shape: Shape, threads: int) -> list[dict[str, Any]]:
    """Rows of one model with one number of threads."""
    models = plan.models(shape, threads)
    prompt = harness.random_ids(shape, PROMPT)
    tokens = 8 if plan.quick else 24
    found = harness.alternate(
        {
            **harness.roofline(threads),
            **{
                dtype: lambda m=model: harness.decode_seconds(m, prompt, tokens)
                for dtype, model in models.items()
            },
        },
        plan.number_of_rounds(2, 7),
    )
    rows = []
    for dtype, model in models.items():
        ids = [*prompt, *harness.greedy(model, prompt, tokens).ids]
        density = harness.density(model, ids)
        times, read = found[dtype], found[harness.READ]
        rate = bytes_read(shape, dtype, density) / 1e9
        rows.append(
            {
                "model": shape.name,
                "format": dtype,
                "threads": threads,
                "tokens_per_second": Figure.of([1 / t for t in times]).json(),
                "bandwidth_share": Figure.of(
                    [rate / t / gb for t, gb in zip(times, read, strict=True)]
                ).json(),
                "relu2_density": density,
                "bytes_per_token": rate * 1e9,
                "read_gb_per_second": Figure.of(read).json(),
            }
        )
    return rows


COLUMNS = ("model", "format", "threads", "tok/s", "of bandwidth", "MB/token", "density", "GB/s")


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    rate, share, read = (
        row[key] for key in ("tokens_per_second", "bandwidth_share", "read_gb_per_second")
    )
    return harness.table_line(
        (
            row["model"],
            row["format"],
            row["threads"],
            f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
            f"{share['median']:.0%}",
            f"{row['bytes_per_token'] / 1e6:.0f}",
            f"{row['relu2_density']:.2f}",
            f"{read['median']:.1f}",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Tokens per second of every format."""
    title = f"Greedy decoding, one row; {harness.cpu_name()}"
    plots.bars_of_formats(plan.plot_file(), rows, title)


if __name__ == "__main__":
    Program("decode", str(__doc__), measure, COLUMNS, line, plot).main()
