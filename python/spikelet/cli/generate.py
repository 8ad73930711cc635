"""`spikelet generate`: write text from a prompt, token by token as it comes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from spikelet.cli.options import (
    add_model_options,
    add_sampling_options,
    add_speculation_options,
    decode_argument,
    load_model,
    read_text_file,
    sampling_arguments,
    speculation_arguments,
)
from spikelet.cli.stats import show_stats, stats_dict
from spikelet.cli.terminal import Output, UsageError, stdout

if TYPE_CHECKING:
    from spikelet import Completion, Model, Token

OPEN, CLOSE = "⟦", "⟧"  # around accepted drafts where there are no colours

EXAMPLES = """\
examples:
  spikelet generate "Once upon a time" --max-new-tokens 200 --seed 7
  spikelet generate --file chapter.txt --temperature 0.7 --top-p 0.9
  echo "The little fox" | spikelet generate --stop '\\n\\n' --stats
  spikelet generate "A dog" --num 3 --json | jq -r .text
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "spikelet generate [PROMPT] [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="text to go on from; '-' reads standard input"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a file")
    add_sampling_options(parser)
    add_speculation_options(parser)
    add_model_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--num", type=int, metavar="N", default=1, help="write N texts (default: 1)"
    )
    output.add_argument(
        "--echo",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show the prompt before the text (default: on a terminal)",
    )
    output.add_argument(
        "--stats", action="store_true", help="speed, seed, reason of the end, what drafts came to"
    )
    output.add_argument(
        "--show-drafts",
        action="store_true",
        help=f"show accepted drafted tokens in green; without colours between {OPEN} and {CLOSE}",
    )
    output.add_argument(
        "--json", action="store_true", help="one JSON object a line for each text, with token ids"
    )
    output.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: also the N likeliest tokens"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if args.num < 1:
        raise UsageError(f"--num needs a number of at least 1, not {args.num}")
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs needs --json")
    if args.show_drafts and args.json:
        raise UsageError("--show-drafts is for text; with --json every token has `drafted`")
    prompt = read_prompt(args)
    options = sampling_arguments(args) | speculation_arguments(args)
    if args.logprobs is not None:
        options["logprobs"] = args.logprobs
    model = load_model(args)
    if args.num > 1:
        _write_several(model, prompt, options, args)
    elif args.json:
        completion = model.generate(prompt, **options).run()
        stdout().line(json.dumps(as_dict(model, prompt, completion), ensure_ascii=False))
        if args.stats:
            show_stats(model, completion, None)
    else:
        _stream(model, prompt, options, args)
    return 0


def read_prompt(args: argparse.Namespace) -> str:
    """From the argument, --file, or standard input if something is piped in."""
    if args.prompt is not None and args.file is not None:
        raise UsageError("give PROMPT or --file, not both")
    if args.file is not None:
        return read_text_file(args.file)
    if args.prompt is not None and args.prompt != "-":
        return decode_argument(args.prompt)
    if args.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("no prompt: give it as PROMPT, with --file, or through a pipe")
    if sys.stdin is None:
        raise UsageError("no prompt: standard input is closed")
    return read_text_file("-")


def _stream(model: Model, prompt: str, options: dict[str, Any], args: argparse.Namespace) -> None:
    out = stdout()
    start = time.perf_counter()
    generation = model.generate(prompt, **options)
    first_token: float | None = None
    written = 0
    writer = TokenWriter(out, show_drafts=args.show_drafts)
    try:
        if _shows_prompt(out, args):
            out.model_text(prompt, "dim")
        for token in generation:
            if first_token is None:
                first_token = time.perf_counter() - start
            if token:
                writer.write(token)
                written += len(token)
    except KeyboardInterrupt:
        # A token that was on its way, and what the stop rules held back, are not lost.
        generation.close()
        writer.close()
        out.model_text(generation.text[written:])
        _end_line(out, generation.text)
        if args.stats:
            show_stats(model, generation, first_token)
        raise
    writer.close()
    _end_line(out, generation.text)
    if args.stats:
        show_stats(model, generation, first_token)


class TokenWriter:
    """Writes a text token by token, and shows which tokens were drafted if that is asked for.

    A token that completes a character brings the text of those before it.
    """

    def __init__(self, out: Output, *, show_drafts: bool) -> None:
        self._out = out
        self._shows = show_drafts
        self._marks = show_drafts and not out.colour
        self._open = False

    def write(self, token: Token) -> None:
        """The next token."""
        if not token:
            return
        drafted = self._shows and token.drafted
        if self._marks and drafted != self._open:
            self._out.write(OPEN if drafted else CLOSE)
            self._open = drafted
        self._out.model_text(str(token), *(["green"] if drafted and not self._marks else []))

    def close(self) -> None:
        """Closes what is open at the end of the text."""
        if self._open:
            self._out.write(CLOSE)
            self._open = False


def _shows_prompt(out: Output, args: argparse.Namespace) -> bool:
    """Whether the prompt comes before the text: as asked, otherwise for those who look at it."""
    return bool(out.is_terminal if args.echo is None else args.echo)


def _end_line(out: Output, text: str) -> None:
    """Text ends with a newline, so that a shell's prompt starts on its own line."""
    if not text.endswith("\n"):
        out.line()


def _write_several(
    model: Model, prompt: str, options: dict[str, Any], args: argparse.Namespace
) -> None:
    out = stdout()
    completions = model.generate_batch([prompt] * args.num, **options)
    for number, completion in enumerate(completions, 1):
        if args.json:
            out.line(json.dumps(as_dict(model, prompt, completion), ensure_ascii=False))
            continue
        out.line(out.paint(f"--- {number} of {args.num} ---", "bold"))
        if _shows_prompt(out, args):
            out.model_text(prompt, "dim")
        writer = TokenWriter(out, show_drafts=args.show_drafts)
        for token in completion.tokens:
            writer.write(token)
        writer.close()
        _end_line(out, completion.text)
    if args.stats:
        for completion in completions:
            show_stats(model, completion, None)


def as_dict(model: Model, prompt: str, completion: Completion) -> dict[str, Any]:
    """What --json prints of one text."""
    return {
        "model": str(model.path),
        "prompt": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "tokens": [
            {
                "id": token.id,
                "text": str(token),
                "logprob": token.logprob,
                "drafted": token.drafted,
                **(
                    {"top_logprobs": [{"id": top.id, "logprob": top.logprob} for top in tops]}
                    if (tops := token.top_logprobs)
                    else {}
                ),
            }
            for token in completion.tokens
        ],
        "stats": stats_dict(completion.stats),
    }
