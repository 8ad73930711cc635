"""Charts of a report. They need matplotlib: pip install 'spikelet[bench]'."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spikelet.bench import theory
from spikelet.bench.report import Report, Row

SIZE = (8, 4.5)
FEW = 6
"""Names that a legend has inside its chart."""
LINES = ("o-", "s--", "^-.", "v-", "D--", "x-.")


def draw(report: Report, folder: Path, *, kind: str = "svg") -> list[Path]:
    """Writes all charts that the report has something for.

    Args:
        report: what was measured.
        folder: where to; it is made.
        kind: of file: `"svg"` or `"png"`.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in CHARTS.items():
        figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
        if chart(report, axes):
            file = folder / f"{name}.{kind}"
            figure.savefig(file, metadata={"Date": None} if kind == "svg" else None, dpi=110)
            if kind == "svg":
                # matplotlib leaves blanks at the ends of lines.
                text = "\n".join(line.rstrip() for line in file.read_text().splitlines())
                file.write_text(text + "\n")
            written.append(file)
        plt.close(figure)
    return written


def pyplot() -> Any:
    """Loads matplotlib, without a screen; the same report gives the same files."""
    try:
        mpl = importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is needed for plots: pip install 'spikelet[bench]'", name="matplotlib"
        ) from error
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "spikelet"
    return importlib.import_module("matplotlib.pyplot")


def label(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row from the others, without its class."""
    parts = [f"T={row.temperature:g}", row.method]
    for name, text in (
        ("model", row.model),
        ("num_speculative_tokens", f"{row.num_speculative_tokens} tokens"),
        ("batch_size", f"{row.batch_size} rows"),
        ("dtype", row.dtype),
        ("threads", f"{row.threads} threads"),
        ("forced_acceptance", f"forced {row.forced_acceptance}"),
    ):
        if len({getattr(other, name) for other in rows}) > 1:
            parts.append(text)
    return ", ".join(parts)


def labels(rows: Sequence[Row]) -> list[str]:
    """All of them, each once."""
    return list(dict.fromkeys(label(row, rows) for row in rows))


def finish(axes: Any, xlabel: str, ylabel: str, title: str, report: Report) -> bool:
    """What all charts have. Forced runs say so on each."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    forced = any(row.text == "forced" for row in report.rows)
    note = "forced acceptance: not the model's text\n" if forced else ""
    models = ", ".join(dict.fromkeys(row.model for row in report.rows))
    axes.set_title(f"{note}{title}\n{models}; {report.machine['cpu']}", fontsize=9)
    axes.grid(alpha=0.3)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        if len(handles) > FEW:
            axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
        else:
            axes.legend(fontsize=6, loc="upper right" if ylabel == "" else "best")
    return True


def speedups_by_class(report: Report, axes: Any) -> bool:
    """Bars with their intervals."""
    rows = report.rows
    classes = list(dict.fromkeys(row.prompt_class for row in rows))
    names = labels(rows)
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        own = {row.prompt_class: row.speedup for row in rows if label(row, rows) == name}
        places = [c + (i + 0.5) * width - 0.4 for c, key in enumerate(classes) if key in own]
        found = [own[key] for key in classes if key in own]
        heights = [figure.median for figure in found]
        spread = np.abs(
            [[f.median - f.low for f in found], [f.high - f.median for f in found]]
        )  # fmt: skip
        drawn = axes.bar(places, heights, width, label=name, yerr=spread, ecolor="0.3", capsize=2)
        axes.bar_label(drawn, fmt="%.2f", fontsize=6, padding=2)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(classes)), classes)
    return finish(axes, "", "times base decoding", "Speed-up by class of prompts", report)


def acceptance_by_position(report: Report, axes: Any) -> bool:
    """How far drafts come, and how far guesses of one token each could."""
    rows = [row for row in report.rows if row.acceptance_rate_per_position]
    drawn = set()
    for row, colour, style in styled(rows):
        rates = row.acceptance_rate_per_position
        name = f"{row.prompt_class}, {label(row, rows)}"
        axes.plot(range(1, len(rates) + 1), rates, style, color=colour, label=name, markersize=4)
        key = (row.model, row.prompt_class, row.temperature)
        if row.temperature > 0 and row.text != "forced" and key not in drawn:
            drawn.add(key)
            ceiling = row.one_hot_ceiling[: len(rates)]
            axes.plot(range(1, len(ceiling) + 1), ceiling, ":", color=colour)
    if drawn:
        axes.plot([], [], ":", color="0.4", label="the likeliest token, T > 0")
    axes.set_ylim(0, 1.02)
    return bool(rows) and finish(
        axes, "position in the draft", "share accepted", "Acceptance by position", report
    )


def accepted_lengths(report: Report, axes: Any) -> bool:
    """How many drafted tokens stayed."""
    rows = [row for row in report.rows if sum(row.accepted_histogram)]
    for row, colour, style in styled(rows):
        counts = np.asarray(row.accepted_histogram, float)
        counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
        name = f"{row.prompt_class}, {label(row, rows)}"
        axes.plot(counts / counts.sum(), style, color=colour, label=name, markersize=4)
    return bool(rows) and finish(
        axes, "drafted tokens accepted", "share of drafts", "Accepted lengths", report
    )


def styled(rows: Sequence[Row]) -> list[tuple[Row, str, str]]:
    """A colour for each class, a line for each other difference."""
    classes = list(dict.fromkeys(row.prompt_class for row in rows))
    others = labels(rows)
    return [
        (
            row,
            f"C{classes.index(row.prompt_class) % 10}",
            LINES[others.index(label(row, rows)) % len(LINES)],
        )
        for row in rows
    ]


def pass_costs(report: Report, axes: Any) -> bool:
    """Passes over several tokens, measured and on the roofline."""
    for i, entry in enumerate(report.costs):
        tokens = sorted(entry["pass"])
        name = f"{entry['model']} {entry['dtype']}, {entry['threads']} threads"
        measured = [1e3 * entry["pass"][t] for t in tokens]
        axes.plot(tokens, measured, "o-", color=f"C{i}", label=f"{name}, measured", markersize=4)
        bound = [1e3 * entry["roofline"][t] for t in tokens]
        axes.plot(tokens, bound, ":", color=f"C{i}", label=f"{name}, roofline")
        known = {t: 1e3 * s for t, s in sorted(entry["engine"].items()) if t <= max(tokens)}
        axes.plot(
            list(known), list(known.values()), "x", color=f"C{i}", label=f"{name}, for the engine"
        )
    axes.set_ylim(bottom=0)
    return bool(report.costs) and finish(
        axes, "tokens in a pass", "milliseconds", "Cost of a pass", report
    )


def break_even(report: Report, axes: Any) -> bool:
    """Where speculation pays: speed-up over acceptance and draft length; measured points."""
    if not report.costs:
        return False
    costs = report.costs[0]
    acceptances = np.linspace(0.0, 0.99, 100)
    lengths = range(1, min(max(costs["pass"]), 16))
    surface = np.array(theory.speedups(costs, list(acceptances), list(lengths)))
    shown = axes.contourf(acceptances, lengths, surface, levels=12, cmap="viridis")
    axes.figure.colorbar(shown, ax=axes, label="speed-up from measured costs")
    axes.contour(acceptances, lengths, surface, levels=[1.0], colors="white", linewidths=2)
    own = (costs["model"], costs["dtype"], costs["threads"])
    for row in report.rows:
        if not row.mean_draft_length or row.mean_acceptance_length is None:
            continue
        if (row.model, row.dtype, row.threads) != own or row.batch_size > 1:
            continue
        at = theory.implied_acceptance(row.mean_acceptance_length, row.mean_draft_length)
        axes.plot(at, row.mean_draft_length, "o", color="red", markersize=4)
        axes.annotate(
            f"{row.prompt_class} {row.temperature:g}: {row.speedup.median:.2f}",
            (at, row.mean_draft_length), fontsize=6, color="white",
            xytext=(3, 3), textcoords="offset points",
        )  # fmt: skip
    axes.set_xlim(0, 0.99)
    title = f"Break-even (white) of {costs['dtype']}, with measured speed-ups"
    return finish(axes, "acceptance of a token", "drafted tokens", title, report)


def predicted_and_measured(report: Report, axes: Any) -> bool:
    """What the engine expected, and what came."""
    rows = [row for row in report.rows if row.predicted_speedup is not None]
    for name in labels(rows):
        own = [row for row in rows if label(row, rows) == name]
        axes.errorbar(
            [row.predicted_speedup for row in own],
            [row.speedup.median for row in own],
            yerr=np.abs([
                [row.speedup.median - row.speedup.low for row in own],
                [row.speedup.high - row.speedup.median for row in own],
            ]),
            fmt="o", label=name, markersize=4, capsize=2,
        )  # fmt: skip
    if not rows:
        return False
    ends = [row.speedup.median for row in rows] + [row.predicted_speedup or 0 for row in rows]
    line = np.array([min(ends) * 0.95, max(ends) * 1.05])
    axes.plot(line, line, color="black", linewidth=0.8)
    axes.fill_between(line, line * 0.9, line * 1.1, color="0.5", alpha=0.15, label="within 10 %")
    return finish(axes, "predicted speed-up", "measured", "Prediction and measurement", report)


def round_times(report: Report, axes: Any) -> bool:
    """Where a round's time goes, beside a step of base decoding."""
    rows = report.rows
    names = [f"{row.prompt_class}, {label(row, rows)}" for row in rows]
    places = np.arange(len(rows))
    left = np.zeros(len(rows))
    for part in ("verify", "draft", "accept", "other"):
        values = np.array([getattr(row, f"{part}_ms") for row in rows])
        axes.barh(places, values, 0.6, left=left, label=part)
        left += values
    axes.plot([row.base_ms for row in rows], places, "k|", markersize=12, label="base step")
    axes.set_yticks(places, names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(left.max(), *(row.base_ms for row in rows)))
    return finish(axes, "milliseconds of a round", "", "Time of a round", report)


CHARTS: dict[str, Callable[[Report, Any], bool]] = {
    "speedup": speedups_by_class,
    "acceptance": acceptance_by_position,
    "lengths": accepted_lengths,
    "passes": pass_costs,
    "break-even": break_even,
    "predicted": predicted_and_measured,
    "rounds": round_times,
}
"""By the name of its file."""
