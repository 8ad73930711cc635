"""The command `spikelet`: finds the subcommand, runs it, and says in one line what went wrong.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C), 141 the reader of a pipe
went away. A subcommand's module is imported only when it is called.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

from spikelet.cli.options import HelpFormatter
from spikelet.cli.terminal import OutputError, UsageError, abandon_stdout, prepare_streams, stderr

COMMANDS = {
    "generate": "write text from a prompt",
    "chat": "talk with a model, or write a story together",
    "eval": "how well a model predicts texts, and how it does in tasks",
    "info": "what is in a model folder or file",
    "convert": "store a model in another format or number type",
    "quantize": "store a model with 8- or 4-bit weights",
    "train": "train a model on a text file",
    "train-prophet": "train what guesses ahead for a model, to make it faster",
    "report": "show training runs as one HTML page",
    "lm": "train, list and use language models by name",
    "create-options": "everything that can be set in training, as JSON",
    "bench": "base against speculative decoding: speed, and equal text",
    "models": "the models that can be loaded by name",
    "doctor": "check this installation: kernels, threads, self-test",
}
EPILOG = """\
examples:
  spikelet generate "Once upon a time" --max-new-tokens 200
  cat story.txt | spikelet generate - --seed 7 > continued.txt
  spikelet doctor

'spikelet COMMAND --help' tells more of a command.
"""
INTERRUPTED = 130
BROKEN_PIPE = 141


class Command(Protocol):
    """What a module of this package offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Runs the command and returns the exit code."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    command: argparse.ArgumentParser | None = None
    """The parser of the command that was asked for."""

    def error(self, message: str) -> NoReturn:
        """Raises what `main` prints."""
        raise UsageError(f"{message} (see '{self.prog} --help')")


def available_commands() -> dict[str, str]:
    """COMMANDS without those whose module is not part of this installation."""
    return {
        name: summary
        for name, summary in COMMANDS.items()
        if importlib.util.find_spec(_module(name)) is not None
    }


def build_parser(command: str | None) -> Parser:
    """The parser; only the named subcommand's options are filled in."""
    parser = Parser(
        prog="spikelet",
        description="Local text generation with SpikeGPT and RWKV models.",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_debug_option(parser)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, summary in available_commands().items():
        child = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        if name == command:
            load_command(name).configure(child)
            add_debug_option(child)
            parser.command = child
    return parser


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Adds --debug, which stands before or after the command."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error (also: SPIKELET_DEBUG=1)",
    )


def load_command(name: str) -> Command:
    """Imports the module of a command."""
    return cast(Command, importlib.import_module(_module(name)))


def _module(command: str) -> str:
    return f"spikelet.cli.{command.replace('-', '_')}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Words to options; wrong ones raise UsageError."""
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in available_commands():
        near = difflib.get_close_matches(command, available_commands(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see 'spikelet --help'"
        raise UsageError(f"unknown command '{command}' ({hint})")
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(_unknown_option(getattr(args, "leaf", parser.command), parser, unknown[0]))
    return args


def _unknown_option(
    command: argparse.ArgumentParser | None, parser: argparse.ArgumentParser, word: str
) -> str:
    """Names the word that nothing takes, and the option that it resembles."""
    asked = command or parser
    options = re.findall(r"--[a-z][a-z_-]+", asked.format_help())
    near = difflib.get_close_matches(word.split("=", maxsplit=1)[0], options, n=1)
    if near:
        return f"unknown option {word} (did you mean {near[0]}?)"
    kind = "unknown option" if word.startswith("-") else "unexpected argument"
    return f"{kind} {word} (see '{asked.prog} --help')"


def run(argv: Sequence[str]) -> int:
    """Runs what the words ask for; raises what goes wrong."""
    args = parse(argv)
    if args.version:
        from spikelet import __version__

        sys.stdout.write(f"spikelet {__version__}\n")
        return 0
    if args.command is None:
        sys.stdout.write(build_parser(None).format_help())
        return 0
    return load_command(args.command).run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("SPIKELET_DEBUG"))
    prepare_streams()
    try:
        return _run_and_flush(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the outermost place: everything becomes a line
        if debug:
            traceback.print_exc()
        return _report(error)


def _run_and_flush(words: Sequence[str]) -> int:
    code = run(words)
    sys.stdout.flush()
    return code


def _report(error: Exception) -> int:
    """One line on stderr for what a user can act on; a defect keeps its traceback."""
    code, message = _explain(error)
    if message is None:
        raise error
    _discard_unwritable_output()
    out = stderr()
    out.line(f"{out.paint('spikelet: error:', 'red', 'bold')} {message}")
    return code


def _explain(error: Exception) -> tuple[int, str | None]:
    from spikelet import OptionError, SpikeletError

    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, OptionError):
        return 2, _as_typed(str(error))
    if isinstance(error, SpikeletError):
        return 1, str(error)
    if isinstance(error, OutputError):
        return 1, f"cannot write to standard output: {error}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in (
        "torch",
        "safetensors",
        "tokenizers",
    ):
        return 1, f"{error.name} is needed for this: pip install 'spikelet[train]'"
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        return 1, f"{error.filename}: {reason}" if error.filename else reason
    return 1, None


def _as_typed(message: str) -> str:
    """The engine names an option as Python does; here it has dashes."""
    name = re.match(r"option `(\w+)`", message)
    if name is None:
        return message
    typed = {
        "prompt": "the prompt",
        "stop_ids": "--stop-id",
        "spike_embedding": "--spike-embedding or --no-spike-embedding",
    }.get(name[1])
    return (typed or "--" + name[1].replace("_", "-")) + message[name.end() :]


def _discard_unwritable_output() -> None:
    """Flush what was written before the error; where that fails (full disk), let it go."""
    try:
        sys.stdout.flush()
    except OSError:
        abandon_stdout()
