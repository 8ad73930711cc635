"""`spikelet chat`: a conversation that keeps its session, so that the past is never read again."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.conversation import PLAIN_TEMPLATE, Chat, Conversation, Story, Template
from spikelet.cli.options import (
    add_model_options,
    add_sampling_options,
    add_speculation_options,
    decode_argument,
    load_model,
    sampling_arguments,
    speculation_arguments,
    unescape,
)
from spikelet.cli.stats import show_stats
from spikelet.cli.terminal import UsageError, stderr, stdout

if TYPE_CHECKING:
    from spikelet import Model, Session

EPILOG = """\
A line that ends in a backslash goes on in the next one. Commands while talking:
  /retry        another reply to the last line
  /undo         take the last line and its reply back
  /reset        forget everything
  /save FILE    keep the session; it goes on with the same bits elsewhere
  /load FILE    go on with a saved session
  /help  /exit

examples:
  spikelet chat
  spikelet chat --model rwkv-4-world --template plain
  printf 'Once upon a time\\n\\n' | spikelet chat --seed 7
"""
HELP = EPILOG.split("\n\n", maxsplit=1)[0]
KEPT_TURNS = 50  # how far /undo reaches


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "spikelet chat [options]"
    parser.epilog = EPILOG
    group = parser.add_argument_group("conversation")
    group.add_argument(
        "--template",
        metavar="TEXT",
        help="form of a turn, with {user} and {assistant}; 'plain' is User:/Assistant:, "
        "'story' writes on in turns (default: the model's own, else story)",
    )
    group.add_argument("--system", metavar="TEXT", help="text that the conversation begins with")
    group.add_argument("--load", metavar="FILE", help="go on with a saved session")
    group.add_argument("--no-history", action="store_true", help="do not keep typed lines on disk")
    group.add_argument("--stats", action="store_true", help="speed after every reply")
    add_sampling_options(parser)
    add_speculation_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    model = load_model(args)
    conversation, note = choose_conversation(model, args)
    session = model.session()
    if args.load:
        session.load(args.load)
        conversation.restart(past=True)
    elif args.system:
        session.feed(unescape(decode_argument(args.system)) + "\n\n")
    interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    loop = ChatLoop(conversation, session, interactive=interactive, stats=args.stats)
    if not interactive:
        return loop.run(_piped_line)
    err = stderr()
    kind = f"{model.config.model_type}, {model.dtype}, {model.isa}"
    err.line(err.paint(f"{Path(model.path).name} ({kind}). {note} /help lists commands.", "dim"))
    with _history(enabled=not args.no_history):
        return loop.run(_typed_line)


def choose_conversation(model: Model, args: argparse.Namespace) -> tuple[Conversation, str]:
    """A chat where model or user has a template, else a story; and a sentence that says so."""
    options = sampling_arguments(args) | speculation_arguments(args)
    text = unescape(args.template) if args.template else model.chat_template
    if text is None or text == "story":
        note = "This model was trained to continue text, not to answer: "
        note = "" if args.template else note
        return Story(options), f"{note}what you type becomes part of the story, then it writes on."
    template = Template.parse(PLAIN_TEMPLATE if text == "plain" else text)
    stops = [template.stop] if template.stop else []
    stops += options.get("stop", model.generation_config.get("stop", []))
    if stops:
        options["stop"] = stops
    return Chat(template, options), "What you type is answered."


class ChatLoop:
    """Reads lines, runs commands, writes replies."""

    def __init__(
        self, conversation: Conversation, session: Session, *, interactive: bool, stats: bool
    ) -> None:
        self._conversation = conversation
        self._session = session
        self._interactive = interactive
        self._stats = stats
        self._out = stdout()
        self._turns: deque[tuple[Session, str, str]] = deque(maxlen=KEPT_TURNS)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/undo": self._undo,
            "/retry": self._retry,
        }

    def run(self, read_line: Callable[[], str | None]) -> int:
        """Turn by turn, until the lines end."""
        while True:
            try:
                line = read_line()
            except KeyboardInterrupt:
                self._out.line()
                raise
            if line is None or line.strip() in ("/exit", "/quit"):
                if line is None and self._interactive:
                    self._out.line()
                return 0
            try:
                self._turn_or_command(line)
            except KeyboardInterrupt:
                self._stop_reply()
                if not self._interactive:
                    raise

    def _turn_or_command(self, line: str) -> None:
        from spikelet import SpikeletError

        name, _, argument = line.partition(" ")
        try:
            if name in self._commands:
                self._commands[name](argument.strip())
            elif name.startswith("/") and not name.startswith("//"):
                self._unknown(name)
            else:
                self._reply(line.removeprefix("/") if name.startswith("//") else line)
        except (SpikeletError, UsageError, OSError) as error:
            # Someone at the keyboard can try again; a script must not go on as if all were well.
            if not self._interactive or isinstance(error, BrokenPipeError):
                raise
            stderr().line(str(error))

    def _reply(self, text: str) -> None:
        before = (self._session.fork(), self._conversation.mark, text)
        last = self._conversation.generation
        written = ""
        try:
            for piece in self._conversation.reply(self._session, text):
                self._out.model_text(piece)
                written = piece
        finally:
            # Also a reply that was broken off can be taken back; one that never began cannot.
            if self._conversation.generation is not last:
                self._turns.append(before)
        if not written.endswith("\n"):
            self._out.line()
        generation = self._conversation.generation
        if generation is None:
            return
        if (
            self._interactive
            and generation.finish_reason == "eos"
            and self._session.num_tokens == 0
        ):
            self._say("The end. The next line begins a new story.")
        if self._stats:
            # A story is handed over by closing its generation at the end of a sentence.
            handed_over = generation.finish_reason == "cancelled"
            end = "sentence" if handed_over else None
            show_stats(self._session.model, generation, None, end=end)

    def _stop_reply(self) -> None:
        """The session goes on after what was written so far."""
        if self._conversation.generation is not None:
            self._conversation.generation.close()
        self._out.line()

    def _unknown(self, name: str) -> None:
        raise UsageError(f"unknown command {name} (/help lists them; // begins a plain /)")

    def _say(self, text: str) -> None:
        err = stderr()
        err.line(err.paint(text, "dim"))

    def _help(self, argument: str) -> None:
        self._say(HELP)

    def _reset(self, argument: str) -> None:
        self._session.reset()
        self._conversation.restart(past=False)
        self._turns.clear()
        self._say("Everything is forgotten.")

    def _save(self, argument: str) -> None:
        path = _needs_file("/save", argument)
        self._conversation.settle(self._session)
        self._session.save(path)
        self._say(f"Saved {self._session.num_tokens} tokens of past to {path}.")

    def _load(self, argument: str) -> None:
        path = _needs_file("/load", argument)
        self._session.load(path)
        self._conversation.restart(past=True)
        self._turns.clear()
        self._say(f"Going on after {self._session.num_tokens} tokens.")

    def _undo(self, argument: str) -> None:
        self._back()
        self._say("Taken back.")

    def _retry(self, argument: str) -> None:
        self._reply(self._back())

    def _back(self) -> str:
        if not self._turns:
            raise UsageError("there is nothing to take back")
        self._session, self._conversation.mark, text = self._turns.pop()
        return text


def _needs_file(command: str, argument: str) -> str:
    if not argument:
        raise UsageError(f"{command} needs a file name")
    return str(Path(argument).expanduser())


def _joined(read: Callable[[str], str | None]) -> str | None:
    """A line, together with those that follow a backslash at its end."""
    lines: list[str] = []
    while True:
        line = read("... " if lines else "> ")
        if line is None:
            return "\n".join(lines) if lines else None
        if not line.endswith("\\"):
            return decode_argument("\n".join([*lines, line]))
        lines.append(line[:-1])


def _piped_line() -> str | None:
    def read(prompt: str) -> str | None:
        line = sys.stdin.readline() if sys.stdin is not None else ""
        return line.rstrip("\r\n") if line else None

    return _joined(read)


def _typed_line() -> str | None:
    def read(prompt: str) -> str | None:
        try:
            return input(prompt)
        except EOFError:
            return None

    return _joined(read)


@contextlib.contextmanager
def _history(*, enabled: bool) -> Any:
    """Arrow keys and a history of typed lines, where the readline module is there."""
    try:
        import readline
    except ImportError:
        yield
        return
    from spikelet import home

    path = home() / "chat_history"
    if enabled:
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        if enabled:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
                readline.write_history_file(path)
