"""`spikelet quantize`: store a model with 8- or 4-bit weights, and see what that costs."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spikelet.cli.eval import parse_size, read_text
from spikelet.cli.options import add_file_options
from spikelet.cli.terminal import Stages, UsageError, human_bytes, human_count

if TYPE_CHECKING:
    from spikelet import Model
    from spikelet.evaluation import TextScore

MAX_LOSS = {"q8": 0.5, "q4": 2.0}  # per cent of bits per byte
MAX_BYTES = 256 << 10
HELD_OUT = 5  # one part of so many of the calibration text judges

EPILOG = """\
A text shows which weights count most: calibrate with some hundred kilobytes like those that the
model is used on. Without --eval the last fifth of that text is kept back and judges: bits per byte
before (in f32) and after. Beyond --max-loss nothing is written.

The new files appear under their names only when they are complete. Interrupted, refused or out of
space, the command leaves everything as it was.

examples:
  spikelet quantize path/to/model small --calibration stories.txt
  spikelet quantize path/to/model small --dtype q8 --eval valid.txt --max-loss 0.2
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "source", metavar="SRC", help="model folder, .safetensors or .pth file, or a name"
    )
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--dtype", metavar="TYPE", default="q4", help="q8 or q4 (default: q4)")
    for name, text in (("calibration", "to calibrate with"), ("eval", "to judge with")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            action="extend",
            default=[],
            metavar="TEXT",
            help=f"UTF-8 text files {text}, also gzipped; '-' is standard input",
        )
    parser.add_argument(
        "--max-bytes",
        type=parse_size,
        default=MAX_BYTES,
        metavar="N",
        help="read only so many bytes of each text (default: 256k)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        metavar="PERCENT",
        help="most that bits per byte may grow (default: 0.5 for q8, 2 for q4)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads (default: the physical cores)"
    )
    add_file_options(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace DST if it exists, whatever the loss"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no closing lines")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import spikelet

    source = spikelet.find_model(args.source)
    target = Path(args.target)
    if target.exists() and not args.force:
        raise UsageError(f"{target} exists already (--force replaces it)")
    if args.dtype not in MAX_LOSS:
        raise UsageError(f"--dtype needs q8 or q4, not {args.dtype}")
    if [*args.calibration, *args.eval].count("-") > 1:
        raise UsageError("standard input can be read only once")
    calibration = "\n".join(read_text(name, args.max_bytes) for name in args.calibration)
    judge = "\n".join(read_text(name, args.max_bytes) for name in args.eval)
    judged_by = "of --eval"
    if calibration and not judge:
        calibration, judge = split(calibration)
        judged_by = "of the calibration text's last fifth"
    with Stages(quiet=args.quiet) as stages:
        if not calibration:
            stages.say("not calibrated: no --calibration text")
        if not judge:
            stages.say("quality not judged: no text")
            _quantize(source, target, calibration, args, stages)
        else:
            # Beside the target, so that only what passes the judgement gets its name.
            with tempfile.TemporaryDirectory(prefix=".spikelet-", dir=_home_of(target)) as folder:
                small = Path(folder) / "model"
                _quantize(source, small, calibration, args, stages)
                _judge(source, small, judge, judged_by, args, stages)
                spikelet.convert(small, target)
        facts = spikelet.inspect(target)
        size = human_bytes(facts["file_bytes"])
        was = spikelet.inspect(
            source, model_type=args.model_type, spike_embedding=args.spike_embedding
        )
        was_size = human_bytes(was["file_bytes"])
        stages.say(
            f"wrote {target}: {facts['model_type']}, {facts['dtype']}, {size} "
            f"(from {was['dtype']}, {was_size})"
        )
    return 0


def split(text: str) -> tuple[str, str]:
    """A text without its last part, and that part, which begins with a new word."""
    at = len(text) * (HELD_OUT - 1) // HELD_OUT
    spaces = [place for place in (text.find(" ", at), text.find("\n", at)) if place >= 0]
    cut = min(spaces, default=at)
    return text[:cut], text[cut:]


def _quantize(
    source: Path, target: Path, calibration: str, args: argparse.Namespace, stages: Stages
) -> None:
    import spikelet

    tokens = 0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal tokens
        if stage == "reading":
            tokens = total
        stages.report(stage, done, total, unit=" weights" if stage == "quantising" else " tokens")

    report = spikelet.quantize(
        source,
        target,
        dtype=args.dtype,
        calibration=calibration or None,
        threads=args.threads,
        model_type=args.model_type,
        spike_embedding=args.spike_embedding,
        progress=show,
    )
    if calibration:
        kept = [matrix["outliers"] for matrix in report if matrix["outliers"]]
        apart = f"{sum(kept)} inputs of {len(kept)} matrices kept in 16 bits" if kept else ""
        stages.say(
            f"calibrated on {human_count(tokens)} tokens: {apart or 'no input needs 16 bits'}"
        )


def _judge(
    source: Path,
    small: Path,
    text: str,
    judged_by: str,
    args: argparse.Namespace,
    stages: Stages,
) -> None:
    """Raises if the model has become worse than it may."""
    import spikelet

    options = {"model_type": args.model_type, "spike_embedding": args.spike_embedding}
    before = _score(spikelet.load(source, dtype="f32", threads=args.threads, **options), text,
                    "judging before", stages)  # fmt: skip
    after = _score(spikelet.load(small, threads=args.threads), text, "judging after", stages)
    if before.bits_per_byte is None or after.bits_per_byte is None:
        raise UsageError(f"the text {judged_by.removeprefix('of ')} has no bytes to predict")
    loss = 100 * (after.bits_per_byte / before.bits_per_byte - 1)
    stages.say(
        f"bits per byte {judged_by} ({human_bytes(before.bytes)}): {before.bits_per_byte:.4f} "
        f"before, {after.bits_per_byte:.4f} after, {loss:+.2f} %"
    )
    most = MAX_LOSS[args.dtype] if args.max_loss is None else args.max_loss
    if not loss <= most and not args.force:
        raise spikelet.SpikeletError(
            f"{args.dtype} costs {loss:.2f} % in bits per byte, more than {most:g} % (--max-loss); "
            "nothing was written (--force writes it all the same)"
        )


def _score(model: Model, text: str, stage: str, stages: Stages) -> TextScore:
    from spikelet.evaluation.text import score_text

    def show(score: TextScore, total: int) -> None:
        stages.report(stage, score.tokens, total, unit=" tokens")

    return score_text(model, text, name="the text that judges", progress=show)


def _home_of(target: Path) -> Path:
    """The folder that is there already and in which the target will be."""
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent
