"""`spikelet bench`: base decoding against speculative decoding, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.options import add_model_options, count_or_auto, listed, load_model
from spikelet.cli.terminal import Progress, UsageError, stderr, stdout, table

if TYPE_CHECKING:
    from spikelet.bench import Report

EPILOG = """\
Base and speculative decoding run in turns, prompt by prompt, over equal prompts, seeds and numbers
of tokens; nothing but the temperature acts on sampling. A first turn does not count. Figures are
medians; in brackets is a 95 % interval (bootstrap) of the median of the turns' ratios.

columns:
  predicted    speed-up that the engine expected from its measured costs
  draft        mean tokens of a draft; accepted: share of them that stayed
  length       mean tokens that a round with a draft gave, the model's own included
  .. ms        of a round; base ms: a step of base decoding
  chose base   share of rounds without a draft
  identical    SHA-256 of all ids, if base decoding wrote the same

--check fails (exit code 1) if a text is not base decoding's where it must be, or if the lower end
of a speed-up's interval is below 0.98. Two of a hundred are left to the timer's own noise; below
that, speculation costs something. A row in doubt is measured up to eight times as long before it
fails, because other work on the machine makes intervals wide.

examples:
  spikelet bench --quick
  spikelet bench path/to/model --temperature 0,0.7,1 --method prophet,ngram --plots charts
  spikelet bench path/to/model --class prose,copy --num-speculative-tokens auto,2,4,8
  spikelet bench path/to/model --prompts mine.txt --check
"""
METHODS = (
    "auto, prophet, ngram, table, prophet+ngram, draft_model; off is base decoding against itself "
    "(default: auto)"
)
QUICK = {"max_new_tokens": 48, "prompts_per_class": 2}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "spikelet bench [MODEL] [options]"
    parser.epilog = EPILOG
    parser.add_argument("word", nargs="?", metavar="MODEL", help="the same as --model")
    what = parser.add_argument_group("what is continued")
    what.add_argument(
        "--class",
        dest="classes",
        type=listed(str),
        metavar="NAMES",
        help="prose, dialogue, code, lists, copy, random, with commas (default: all that the model "
        "can read; none with --prompts)",
    )
    what.add_argument(
        "--prompts",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="prompts of your own, between lines '%%%%'; may be repeated, each file is a class",
    )
    what.add_argument(
        "-n", "--max-new-tokens", type=int, metavar="N", help="tokens of a text (default: 128)"
    )
    axes = parser.add_argument_group("axes: values with commas, of which every combination runs")
    for name, kind, metavar, text in (
        ("temperature", float, "T", "0 is greedy (default: 0,1)"),
        ("method", str, "NAME", METHODS),
        ("num-speculative-tokens", count_or_auto, "N", "of a draft, or auto (default: auto)"),
        ("batch-size", int, "N", "texts at once (default: 1)"),
    ):  # fmt: skip
        axes.add_argument(f"--{name}", type=listed(kind), metavar=metavar, help=text)
    how = parser.add_argument_group("how")
    how.add_argument("--verify", metavar="RULE", help="auto, coupled, block or token")
    how.add_argument("--draft-model", metavar="MODEL", help="of method draft_model")
    how.add_argument(
        "--forced-acceptance",
        type=float,
        metavar="P",
        help="accept drafted tokens with this probability, whatever they are: what the machine "
        "does at such a rate; the text is not the model's",
    )
    how.add_argument(
        "--repetitions", type=int, default=5, metavar="N", help="turns that count (default: 5)"
    )
    how.add_argument(
        "--quick", action="store_true", help="2 prompts of each class and 48 tokens, if not given"
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--check", action="store_true", help="exit code 1 for other text, or less speed: see below"
    )
    out.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    out.add_argument("--out", type=Path, metavar="FILE", help="write that object to FILE, too")
    out.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    out.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw charts there (needs matplotlib)"
    )
    out.add_argument(
        "--plot-format", choices=("svg", "png"), default="svg", help="of charts (default: svg)"
    )
    add_model_options(parser, several=True)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from spikelet import bench
    from spikelet.bench.report import LEAST_SPEEDUP, joined
    from spikelet.training.files import write_text

    if args.word is not None:
        if args.model is not None:
            raise UsageError("give MODEL or --model, not both")
        args.model = args.word
    # Before anything is measured.
    if args.plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plots needs matplotlib: pip install 'spikelet[bench]'")
    for file in (args.out, args.csv):
        if file is not None and file.is_dir():
            raise UsageError(f"a file is needed, {file} is a folder")
    settings = arguments(args)
    reports = []
    for dtype, threads in product(args.dtype or [None], args.threads or [None]):
        args.dtype, args.threads = dtype, threads
        model = load_model(args)
        with Progress("measuring", None, unit=" turns") as bar:

            def show(done: int, total: int, note: str, bar: Progress = bar) -> None:
                bar.update(done, note, total=total)

            settings["settle"] = LEAST_SPEEDUP if args.check else None
            reports.append(bench.run(model, progress=show, **settings))
    report = joined(reports)
    if args.json:
        stdout().line(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        show_table(report)
    if args.out is not None:
        write_text(args.out, json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n")
    if args.csv is not None:
        write_text(args.csv, report.csv())
    if args.plots is not None:
        from spikelet.bench.plots import draw

        draw(report, args.plots, kind=args.plot_format)
    failures = report.failures() if args.check else []
    err = stderr()
    for failure in failures:
        err.line(f"{err.paint('check:', 'red', 'bold')} {failure}")
    return 1 if failures else 0


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `bench.run`: only what was given."""
    from spikelet.bench.prompts import file_prompts

    names = {
        "classes": args.classes,
        "temperatures": args.temperature,
        "methods": args.method,
        "num_speculative_tokens": args.num_speculative_tokens,
        "batch_sizes": args.batch_size,
        "verify": args.verify,
        "forced_acceptance": args.forced_acceptance,
        "max_new_tokens": args.max_new_tokens,
        "repetitions": args.repetitions,
    }
    given = {name: value for name, value in names.items() if value is not None}
    if args.quick:
        given = {**QUICK, **given}
    if args.prompts:
        given["prompts"] = {}
        for file in args.prompts:
            given["prompts"] |= file_prompts(file)
    if args.draft_model is not None:
        import spikelet

        options = {} if args.device is None else {"device": args.device}
        given["draft_model"] = spikelet.load(args.draft_model, **options)
    return given


def show_table(report: Report) -> None:
    """Notes, and aligned columns."""
    out = stdout()
    for note in report.notes():
        out.line(out.paint(note, "dim"))
    out.line()
    cells = report.cells()
    head, *lines = table(cells, right=frozenset(range(3, len(cells[0]) - 1)))
    out.line(out.paint(head, "bold"))
    for line in lines:
        out.line(line)
