"""Charts of results as SVG files; without matplotlib there are none, and a line says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def figure() -> tuple[Any, Any] | None:
    """A figure and its axes, or None without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed")
        return None
    mpl.use("svg")
    # The same results give the same file.
    mpl.rcParams["svg.hashsalt"] = "spikelet"
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.5), layout="constrained")


def save(drawn: tuple[Any, Any], file: Path) -> None:
    """Writes the figure and forgets it."""
    import matplotlib.pyplot as plt

    drawn[0].savefig(file, metadata={"Date": None})
    plt.close(drawn[0])
    # matplotlib leaves blanks at the ends of lines.
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")
    print(f"written: {file}")


def bars(
    file: Path | None,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    ylabel: str,
    title: str,
) -> None:
    """Bars side by side.

    Args:
        file: where to; None draws nothing.
        groups: what stands along the x axis.
        series: a bar for each group, None for none, by the name in the legend.
        ylabel: what is drawn, with its unit.
        title: above it.
    """
    drawn = figure() if file is not None else None
    if file is None or drawn is None:
        return
    axes = drawn[1]
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + (i + 0.5) * width - 0.4 for g, v in enumerate(values) if v is not None]
        kept = [v for v in values if v is not None]
        found = axes.bar(places, kept, width, label=name)
        axes.bar_label(found, fmt=lambda v: f"{v:.3g}", fontsize=6)
    axes.set_xticks(range(len(groups)), groups)
    finish(axes, ylabel, title)
    save(drawn, file)


def bars_of_formats(file: Path | None, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Tokens per second: a group for each model and number of threads, a bar for each format."""
    groups = list(dict.fromkeys((row["model"], row["threads"]) for row in rows))
    rates = {
        (row["model"], row["threads"], row["format"]): row["tokens_per_second"]["median"]
        for row in rows
    }
    bars(
        file,
        [f"{model}\n{threads} thread{'s' * (threads > 1)}" for model, threads in groups],
        {
            dtype: [rates.get((*group, dtype)) for group in groups]
            for dtype in dict.fromkeys(row["format"] for row in rows)
        },
        "tokens per second",
        title,
    )


def lines(
    file: Path | None,
    series: Mapping[str, tuple[Sequence[float], Sequence[float], str]],
    labels: tuple[str, str],
    title: str,
    *,
    log: bool = False,
) -> None:
    """Lines over numbers.

    Args:
        file: where to; None draws nothing.
        series: x, y and a line style of matplotlib, by the name in the legend.
        labels: of the axes.
        title: above it.
        log: both axes by powers of two.
    """
    drawn = figure() if file is not None else None
    if file is None or drawn is None:
        return
    axes = drawn[1]
    colours: dict[str, str] = {}
    for name, (x, y, style) in series.items():
        # "q8" and "q8, bound" belong together.
        kind = name.partition(",")[0]
        colour = colours.setdefault(kind, f"C{len(colours)}")
        axes.plot(x, y, style, label=name, color=colour, markersize=4)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    finish(axes, labels[1], title)
    save(drawn, file)


def finish(axes: Any, ylabel: str, title: str) -> None:
    """What all charts have."""
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7)
