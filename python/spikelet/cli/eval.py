"""`spikelet eval`: how well a model predicts texts, and how it does in tasks.

What is measured, and how, is in `spikelet.evaluation`; here are files, options and tables.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from spikelet.cli.options import add_model_options, load_model
from spikelet.cli.terminal import Progress, Stages, UsageError, human_bytes, stdout, table

if TYPE_CHECKING:
    from spikelet import Model
    from spikelet.evaluation import Metric, TaskResult, TextScore

EPILOG = """\
The first token of a text is read but not predicted: its loss and its bytes do not count.

tasks (JSON lines, also gzipped; nothing is downloaded):
  lambada   {"text"}: is the last word of a passage what the model would write?
  blimp     {"UID", "sentence_good", "sentence_bad"}: is the grammatical sentence likelier?
  piqa      {"goal", "sol1", "sol2", "label"}: is the solution that works likelier?

examples:
  spikelet eval story.txt
  spikelet eval path/to/model valid.txt.gz --max-bytes 1M
  spikelet eval --model path/to/model part1.txt part2.txt --json
  spikelet eval path/to/model --task lambada=lambada_test.jsonl --task blimp=blimp.jsonl.gz
"""
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "spikelet eval [MODEL] [TEXT...] [--task NAME=FILE...] [options]"
    parser.epilog = EPILOG
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="UTF-8 text files, also gzipped; '-' is standard input. A first word that is a model "
        "is taken as --model",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="of texts: forget everything after every N tokens (default: never)",
    )
    parser.add_argument(
        "--max-bytes",
        type=parse_size,
        metavar="N",
        help="read only so many bytes of each text; 64k and 10M work too",
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="run a task: lambada, blimp or piqa, with the items of FILE; may be repeated",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="take the first N items of a task, of blimp those of each paradigm",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="with --limit: draw the items")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write that object to FILE, too")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from spikelet.evaluation import TextScore, evaluate
    from spikelet.training.files import write_text

    texts: list[str] = args.texts
    tasks = _tasks(args.task)
    if args.out is not None and args.out.is_dir():
        raise UsageError(f"--out needs a file, {args.out} is a folder")
    if args.seed is not None and args.limit is None:
        raise UsageError("--seed draws items for --limit, which is not given")
    if args.model is None and texts and _is_model(texts[0]):
        args.model = texts.pop(0)
    if not texts and not tasks:
        model_only = "" if args.model is None else f"{args.model} is a model: "
        raise UsageError(f"{model_only}no text given, and no --task")
    model = load_model(args)
    scores = [_score(model, name, args.max_bytes, args.context) for name in texts]
    with Stages() as stages:

        def report(task: str, done: int, of: int) -> None:
            stages.report(task, done, of, unit=" sequences")

        results = evaluate(model, tasks, limit=args.limit, seed=args.seed, report=report)
    total = None
    if scores:
        total = TextScore("total")
        for score in scores:
            total.tokens += score.tokens
            total.bytes += score.bytes
            total.nats += score.nats
            total.seconds += score.seconds
    found = {
        "model": str(model.path),
        "dtype": model.dtype,
        "context": args.context,
        "texts": [score.as_dict() for score in scores],
        "total": total and total.as_dict(),
        "limit": args.limit,
        "seed": args.seed,
        "tasks": {name: result.as_dict() for name, result in results.items()},
    }
    if args.json:
        stdout().line(json.dumps(found, ensure_ascii=False))
    else:
        if total is not None:
            _show_texts([*scores, total] if len(scores) > 1 else scores)
        if results:
            _show_tasks(list(results.values()))
    if args.out is not None:  # last: what was printed is not lost where this fails
        write_text(args.out, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return 0


def _tasks(words: list[str]) -> dict[str, str]:
    """`NAME=FILE` by name."""
    tasks: dict[str, str] = {}
    for word in words:
        name, separator, path = word.partition("=")
        if not separator or not path:
            raise UsageError(f"--task needs the form NAME=FILE, not '{word}'")
        if name in tasks:
            raise UsageError(f"--task {name} is given twice: {tasks[name]} and {path}")
        tasks[name] = path
    return tasks


def _score(model: Model, name: str, max_bytes: int | None, context: int | None) -> TextScore:
    from spikelet.evaluation import score_text

    text = read_text(name, max_bytes)
    with Progress(Path(name).name, None, unit=" tokens") as bar:

        def show(score: TextScore, total: int) -> None:
            bits = score.bits_per_byte
            note = "" if bits is None else f"about {bits:.3f} bits/byte"
            bar.update(score.tokens, note, total=total)

        return score_text(model, text, name=name, context=context, progress=show)


def read_text(name: str, max_bytes: int | None) -> str:
    """The text of a file, gzipped or not, cut at a whole character where `max_bytes` cuts it."""
    if name == "-":
        data = _read(sys.stdin.buffer, max_bytes)
    else:
        with Path(name).open("rb") as file:
            data = _read(file, max_bytes)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        cut = error.start >= len(data) - 3 and error.reason == "unexpected end of data"
        if max_bytes is not None and cut:
            return data[: error.start].decode()
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}") from None


def _read(file: BinaryIO, max_bytes: int | None) -> bytes:
    head = file.read(2)
    rest = file
    if head == b"\x1f\x8b":
        try:
            with gzip.open(cast(BinaryIO, _Rewound(head, file))) as unpacked:
                return unpacked.read(-1 if max_bytes is None else max_bytes)
        except (EOFError, zlib.error) as error:
            raise UsageError(f"broken gzip data: {error}") from None
    return head + rest.read(-1 if max_bytes is None else max(0, max_bytes - len(head)))


class _Rewound:
    """A stream with its first bytes put back: standard input cannot be rewound."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        if size < 0:
            return head + self._file.read()
        if len(head) > size:
            head, self._head = head[:size], head[size:]
        return head + self._file.read(size - len(head))


def _is_model(word: str) -> bool:
    """A folder, a weight file, or a name that is no file but a model."""
    path = Path(word)
    if word == "-" or path.is_file():
        return path.suffix in (".safetensors", ".pth")
    if path.is_dir():
        return True
    from spikelet import local_models

    return word in local_models()


def parse_size(text: str) -> int:
    """Bytes from `4096`, `64k` or `10M`."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if unit not in _SIZES or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"needs a number of bytes such as 4096, 64k or 10M, not '{text}'"
        )
    return int(number) * _SIZES[unit]


def _show_texts(scores: list[TextScore]) -> None:
    rows: list[tuple[str, ...]] = [
        ("text", "tokens", "bytes", "loss", "perplexity", "bits/byte", "tokens/s")
    ]
    for score in scores:
        bits = score.bits_per_byte
        rows.append(
            (
                score.text,
                str(score.tokens),
                human_bytes(score.bytes),
                f"{score.loss:.4f}",
                f"{score.perplexity:.2f}",
                "-" if bits is None else f"{bits:.4f}",
                f"{score.tokens / score.seconds:.0f}",
            )
        )
    _table(rows)


def _show_tasks(results: list[TaskResult]) -> None:
    """One line a metric; groups are indented, but for the many paradigms, which are in the JSON."""
    rows: list[tuple[str, ...]] = [
        ("task", "metric", "items", "value", "stderr", "95% interval", "chance", "items/s")
    ]
    for result in results:
        speed = f"{result.num_items / result.seconds:.0f}"
        for metric, found in result.metrics.items():
            chance = result.chance.get(metric)
            cells = _cells(metric, found)
            guess = "" if chance is None else f"{100 * chance:.0f}%"
            rows.append((result.task, metric, *cells, guess, speed))
        for kind, groups in result.groups.items():
            if kind != "paradigm":
                rows += [
                    (f"  {name}", "acc", *_cells("acc", m), "", "") for name, m in groups.items()
                ]
    _table(rows)


def _cells(name: str, metric: Metric) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.2f}%" if name.startswith("acc") else f"{value:.5g}"

    interval = "-" if metric.low is None else f"{shown(metric.low)} - {shown(metric.high)}"
    return str(metric.count), shown(metric.value), shown(metric.stderr), interval


def _table(rows: list[tuple[str, ...]]) -> None:
    out = stdout()
    header, *lines = table(rows, right=frozenset(range(1, 8)))
    out.line(out.paint(header, "bold"))
    for line in lines:
        out.line(line)
