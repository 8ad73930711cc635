"""Runs all tasks on the bundled model and writes the table of docs/evaluation.md.

    python scripts/evaluate_bundled.py DATA

DATA is a folder with `lambada_test.jsonl`, `blimp.jsonl.gz` and `piqa_valid.jsonl`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import spikelet
from spikelet.cli.terminal import Progress
from spikelet.evaluation import Metric, TaskResult, evaluate

FILES = {"lambada": "lambada_test.jsonl", "blimp": "blimp.jsonl.gz", "piqa": "piqa_valid.jsonl"}
BEGIN = "<!-- figures: scripts/evaluate_bundled.py -->\n"
END = "<!-- end of figures -->\n"
EXTREMES = 5  # paradigms at either end


def main() -> None:
    """Reads the options, runs the tasks, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another model (default: the bundled one)")
    parser.add_argument("--limit", type=int, help="items of a task (default: all)")
    root = Path(__file__).parent.parent
    parser.add_argument("--page", type=Path, default=root / "docs" / "evaluation.md")
    args = parser.parse_args()
    text = args.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{args.page}: needs the lines {BEGIN.strip()} and {END.strip()}")
    model = spikelet.load(args.model, threads=1)
    results = {}
    for name, file in FILES.items():
        start = time.process_time()
        with Progress(name, None) as bar:
            results |= evaluate(
                model,
                {name: args.data / file},
                limit=args.limit,
                report=lambda _, done, total, bar=bar: bar.update(done, total=total),
            )
        # Of the one core, however much of it others have: the figure outlives a busy afternoon.
        results[name].seconds = time.process_time() - start
    args.page.write_text(before + BEGIN + figures(model, results) + END + after, encoding="utf-8")
    print(f"wrote {args.page}")


def figures(model: spikelet.Model, results: dict[str, TaskResult]) -> str:
    """The tables of all results."""
    minutes = sum(result.seconds for result in results.values()) / 60
    lines = [
        f"Model {model.sha256[:12]} ({model.dtype}), {minutes:.1f} minutes in all of one core:",
        "",
        "| task | metric | items | value | standard error | 95 % interval | chance | items/s |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, result in results.items():
        for metric, found in result.metrics.items():
            chance = result.chance.get(metric)
            guess = "" if chance is None else f"{100 * chance:.0f} %"
            speed = f"{result.num_items / result.seconds:.0f}"
            cells = [name, metric, str(found.count), *shown(metric, found), guess, speed]
            lines.append(f"| {' | '.join(cells)} |")
    groups = results["blimp"].groups
    lines += ["", "BLiMP by linguistic term:", "", "| term | pairs | accuracy | 95 % interval |"]
    lines.append("| --- | ---: | ---: | --- |")
    for term, found in sorted(groups["term"].items(), key=lambda item: -item[1].value):
        value, _, interval = shown("acc", found)
        lines.append(f"| {term} | {found.count} | {value} | {interval} |")
    paradigms = sorted(groups["paradigm"], key=lambda name: -groups["paradigm"][name].value)

    def told(names: list[str]) -> str:
        return ", ".join(f"{name} {100 * groups['paradigm'][name].value:.1f} %" for name in names)

    lines += ["", f"Best paradigms: {told(paradigms[:EXTREMES])}."]
    lines += ["", f"Worst paradigms: {told(paradigms[-EXTREMES:])}."]
    return "\n".join(lines) + "\n"


def shown(name: str, metric: Metric) -> tuple[str, str, str]:
    """Value, standard error and interval."""

    def number(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.2f} %" if name.startswith("acc") else f"{value:.3g}"

    interval = f"{number(metric.low)} to {number(metric.high)}"
    return number(metric.value), number(metric.stderr), interval


if __name__ == "__main__":
    main()
