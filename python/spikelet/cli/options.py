"""Options that several commands share: the keyword names of the Python functions, with dashes.

No default of the engine is written here: an option that is not given is None and the engine decides
(after the model's generation_config.json). `--help` asks the engine for the values it shows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spikelet.cli.terminal import Progress, UsageError, stderr

T = TypeVar("T")

BAR_FROM = 256 << 20  # bytes of weights
BAR_AFTER = 0.25  # seconds

# name, type, metavar, help: the sampling options that take one number.
_NUMBERS: tuple[tuple[str, type, str, str], ...] = (
    ("temperature", float, "T", "0 always takes the likeliest token; higher is more surprising"),
    ("top-k", int, "K", "draw from the K likeliest tokens; 0 is off"),
    ("top-p", float, "P", "draw from the likeliest tokens that hold this much probability"),
    ("min-p", float, "P", "drop tokens less likely than P times the likeliest"),
    ("typical-p", float, "P", "keep tokens of typical surprise that hold this much probability"),
    ("repetition-penalty", float, "X", "above 1: tokens of prompt and text become less likely"),
    ("presence-penalty", float, "X", "taken off the logits of tokens already written"),
    ("frequency-penalty", float, "X", "the same, times how often they were written"),
    ("penalty-decay", float, "X", "how fast those counts fade per token; 1 never"),
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the engine's default to the help of options that the engine knows.

    A command with a default of its own says so itself.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if "(default: " in (action.help or ""):
            return action.help
        if action.dest in ("stop", "stop_ids", "seed") or action.default is not None:
            return action.help
        from spikelet import default_options

        value = default_options().get(action.dest)
        if value is None or isinstance(value, bool) or value == {}:
            return action.help
        return f"{action.help} (default: {value})"


def add_model_options(
    parser: argparse.ArgumentParser, *, positional: bool = False, several: bool = False
) -> None:
    """--model, --dtype, --threads, --device and what tells an unlabelled checkpoint apart.

    With `several`, --dtype and --threads take values with commas.
    """
    group = parser.add_argument_group("model")
    text = "model folder, .safetensors or .pth file, or a name that 'spikelet models' lists"
    if positional:
        parser.add_argument("model", metavar="MODEL", help=text)
    else:
        group.add_argument(
            "-m", "--model", metavar="MODEL", help=f"{text} (default: the bundled model)"
        )
    commas = "; several with commas" if several else ""
    group.add_argument(
        "--dtype",
        type=listed(str) if several else str,
        metavar="TYPE",
        help=f"number type of the weights: auto, f32, bf16, f16, q8, q4{commas}",
    )
    group.add_argument(
        "--threads",
        type=listed(int) if several else int,
        metavar="N",
        help=f"threads (default: the physical cores){commas}",
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="where to compute: auto, cpu, cuda, cuda:1"
    )
    add_file_options(group)
    group.add_argument(
        "--rescale-every",
        type=int,
        metavar="N",
        help="compatibility: halve activations every N layers, as the authors' script does with 6",
    )


def listed(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A type of option: values with commas."""

    def parse(text: str) -> list[T]:
        try:
            return [kind(word.strip()) for word in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"cannot read '{text}'") from None

    return parse


def add_file_options(group: argparse._ActionsContainer) -> None:
    """Adds what a bare file of weights may leave open."""
    group.add_argument(
        "--model-type", metavar="TYPE", help="architecture, where a bare file does not tell"
    )
    group.add_argument(
        "--spike-embedding",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether a SpikeGPT has a binary embedding, where a bare file does not tell",
    )


def load_model(args: argparse.Namespace) -> Any:
    """The model that the options of `add_model_options` ask for."""
    import spikelet

    names = ("dtype", "threads", "device", "model_type", "spike_embedding", "rescale_every")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    begun = time.monotonic()
    with Progress("loading", None, unit="bytes", quiet=not stderr().is_terminal) as progress:

        def show(done: int, total: int) -> None:
            # What takes no time shows nothing.
            if total > BAR_FROM and time.monotonic() - begun > BAR_AFTER:
                progress.update(done, total=total)

        return spikelet.load(args.model, progress=show, **given)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides which tokens are drawn and where a text ends."""
    length = parser.add_argument_group("length and end")
    length.add_argument(
        "-n", "--max-new-tokens", type=int, metavar="N", help="write N tokens at most"
    )
    length.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help=r"end before this text; \n is a newline; may be repeated",
    )
    length.add_argument(
        "--stop-id",
        dest="stop_ids",
        action="append",
        type=int,
        metavar="ID",
        help="end at this token; may be repeated",
    )
    length.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="go on after the model's end-of-text token",
    )
    length.add_argument(
        "--include-stop",
        action="store_true",
        default=None,
        help="keep the stop text as the end of the text",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--seed", type=int, metavar="N", help="same seed, same text (default: a random one)"
    )
    for name, kind, metavar, text in _NUMBERS:
        sampling.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    sampling.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="ID=X",
        help="add X to the logit of token ID (-inf bans it); may be repeated",
    )
    sampling.add_argument(
        "--preset",
        metavar="NAME",
        help="order of the sampling steps: openai (temperature first) or rwkv (top-p first)",
    )


def add_speculation_options(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are drafted: how fast a text comes, and with --verify which one."""
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--speculative",
        metavar="METHOD",
        help="where drafts come from: auto, off, prophet, ngram, table, prophet+ngram, draft_model "
        "(default: auto)",
    )
    group.add_argument(
        "--num-speculative-tokens",
        type=count_or_auto,
        metavar="N",
        help="tokens of a draft, or auto: as many as pay (default: auto)",
    )
    group.add_argument(
        "--verify",
        metavar="RULE",
        help="coupled keeps the text of base decoding; token and block accept more, and keep only "
        "its distribution (default: coupled)",
    )
    group.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="a smaller model of the same vocabulary that drafts",
    )


def count_or_auto(text: str) -> int | str:
    """A number, or `auto`."""
    return text if text == "auto" else int(text)


def speculation_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword argument `speculative`: only if something was given."""
    method, model = args.speculative, args.draft_model
    given = {
        name: value
        for name in ("num_speculative_tokens", "verify")
        if (value := getattr(args, name)) is not None
    }
    if not given and model is None:
        if method is None:
            return {}
        if method in ("auto", "off"):
            return {"speculative": method}
    elif method == "off":
        raise UsageError("--speculative off does not draft: nothing else about drafts can be asked")
    import spikelet

    if model is not None:
        options = {} if args.device is None else {"device": args.device}
        given["draft_model"] = spikelet.load(model, threads=args.threads, **options)
    given["method"] = method or ("auto" if model is None else "draft_model")
    try:
        return {"speculative": spikelet.SpeculativeConfig(**given)}
    except spikelet.OptionError as error:
        if not str(error).startswith("option `method`"):
            raise
        # Only here has it this name.
        raise UsageError(str(error).replace("option `method`", "--speculative")) from None


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Model.generate`: only what was given."""
    names = [
        "max_new_tokens",
        "stop_ids",
        "ignore_eos",
        "include_stop",
        "seed",
        "preset",
        *(name.replace("-", "_") for name, *_ in _NUMBERS),
    ]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.stop is not None:
        given["stop"] = [unescape(text) for text in args.stop]
    if args.logit_bias is not None:
        given["logit_bias"] = dict(args.logit_bias)
    return given


def _bias(text: str) -> tuple[int, float]:
    name, separator, value = text.partition("=")
    try:
        if separator:
            return int(name), float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"needs the form ID=X such as 50256=-inf, not '{text}'")


def unescape(text: str) -> str:
    r"""`\n`, `\t` and `\\` as typed in a shell, where a real newline is awkward."""
    pieces = (piece.replace("\\n", "\n").replace("\\t", "\t") for piece in text.split("\\\\"))
    return "\\".join(pieces)


def decode_argument(text: str) -> str:
    """Text as it was typed. Bytes that the locale does not know are read as UTF-8, or refused."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise UsageError("the prompt is not valid UTF-8") from None


def read_text_file(path: str) -> str:
    """A prompt from a file; `-` is standard input.

    One newline at the end is taken off: editors and echo put it there.
    """
    name = "standard input" if path == "-" else path
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}") from None
    return text.removesuffix("\n").removesuffix("\r")
