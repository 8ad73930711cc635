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
    decode_argument,
    load_model,
    read_text_file,
    sampling_arguments,
)
from spikelet.cli.terminal import Output, UsageError, human_seconds, stderr, stdout

if TYPE_CHECKING:
    from spikelet import Completion, Generation, Model

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
    output.add_argument("--stats", action="store_true", help="speed, seed and reason of the end")
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
    prompt = read_prompt(args)
    options = sampling_arguments(args)
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
    try:
        if _shows_prompt(out, args):
            out.model_text(prompt, "dim")
        for token in generation:
            if first_token is None:
                first_token = time.perf_counter() - start
            if token:
                out.model_text(str(token))
                written += len(token)
    except KeyboardInterrupt:
        # A token that was on its way, and what the stop rules held back, are not lost.
        generation.close()
        out.model_text(generation.text[written:])
        _end_line(out, generation.text)
        if args.stats:
            show_stats(model, generation, first_token)
        raise
    _end_line(out, generation.text)
    if args.stats:
        show_stats(model, generation, first_token)


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
        out.model_text(completion.text)
        _end_line(out, completion.text)
    if args.stats:
        for completion in completions:
            show_stats(model, completion, None)


def as_dict(model: Model, prompt: str, completion: Completion) -> dict[str, Any]:
    """What --json prints of one text."""
    stats = completion.stats
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
                **(
                    {"top_logprobs": [{"id": top.id, "logprob": top.logprob} for top in tops]}
                    if (tops := token.top_logprobs)
                    else {}
                ),
            }
            for token in completion.tokens
        ],
        "stats": {
            "num_prompt_tokens": stats.num_prompt_tokens,
            "num_generated_tokens": stats.num_generated_tokens,
            "prefill_seconds": stats.prefill_seconds,
            "decode_seconds": stats.decode_seconds,
        },
    }


def show_stats(
    model: Model,
    generation: Generation | Completion,
    first_token: float | None,
    *,
    end: str | None = None,
) -> None:
    """Two lines on stderr: what ran, and how fast. `end` is a better word for why it ended."""
    err = stderr()
    stats = generation.stats
    parts = [
        f"prompt {stats.num_prompt_tokens} tokens, {stats.prefill_tokens_per_second:.0f}/s",
        f"text {stats.num_generated_tokens} tokens, {stats.decode_tokens_per_second:.0f}/s",
    ]
    if first_token is not None:
        parts.append(f"first after {human_seconds(first_token)}")
    parts.append(f"end: {end or generation.finish_reason or 'cancelled'}")
    parts.append(f"seed {generation.seed}")
    threads = f"{model.threads} thread{'s' if model.threads != 1 else ''}"
    machine = f"{model.config.model_type} {model.dtype} on {model.device} ({model.isa}, {threads})"
    err.line(err.paint(machine, "dim"))
    err.line(err.paint("; ".join(parts), "dim"))
