"""How turns of a conversation become text for a session, and where a reply ends.

Two ways: a chat template for models that were trained to answer, and a story that model and user
write in turns for those that were not. Both only ever append to the session: nothing that it has
read is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spikelet.cli.terminal import UsageError

if TYPE_CHECKING:
    from spikelet import Generation, Session

PLAIN_TEMPLATE = "User: {user}\n\nAssistant:{assistant}\n\n"


@dataclass(frozen=True)
class Template:
    """A chat template of plain text: `{user}` and `{assistant}` are the two sides of a turn."""

    before_user: str
    after_user: str
    closing: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """Splits a template at its two marks."""
        if "{%" in text or "{{" in text:
            raise UsageError(
                "the model's chat template is written in Jinja, which this command does not run; "
                "give one with --template, such as 'plain'"
            )
        before_user, user, rest = text.partition("{user}")
        after_user, assistant, closing = rest.partition("{assistant}")
        if not user or not assistant:
            raise UsageError(
                f"a chat template needs {{user}} and then {{assistant}}, found '{text}'"
            )
        # A prompt that ends in a space asks a tokenizer for a word without one.
        return cls(before_user, after_user.rstrip(" "), closing)

    @property
    def stop(self) -> str:
        """The text that ends a reply."""
        return self.closing.rstrip() or self.closing

    def question(self, text: str) -> str:
        """The user's side of a turn, up to where the reply begins."""
        return self.before_user + text + self.after_user


class Conversation(Protocol):
    """Turns over one session."""

    def reply(self, session: Session, text: str) -> Iterator[str]:
        """Take the user's turn into the session and give the reply, piece by piece."""

    def settle(self, session: Session) -> None:
        """Bring the session to where a next turn begins, as it should be saved."""

    def restart(self, *, past: bool) -> None:
        """The session was emptied, or exchanged for one with a past that ends where a turn ends."""

    mark: str
    """What a next turn depends on besides the session; kept and put back with it by /undo."""
    generation: Generation | None
    """The last reply's generation."""


class Chat:
    """Questions and answers in the form of a template."""

    def __init__(self, template: Template, options: dict[str, Any]) -> None:
        self._template = template
        self._options = options
        self.mark = ""  # what the template wants between the last reply and the next turn
        self.generation: Generation | None = None

    def reply(self, session: Session, text: str) -> Iterator[str]:
        """The answer, piece by piece."""
        prompt = self.mark + self._template.question(text)
        # If the reply is broken off, its end is still owed.
        self.mark = self._template.closing
        self.generation = session.generate(prompt, **self._options)
        started = False
        for token in self.generation:
            piece = str(token) if started else token.lstrip()
            started = started or bool(piece)
            if piece:
                yield piece
        if self.generation.finish_reason in ("stop_string", "stop_id", "eos"):
            self.mark = self._template.closing[len(self._template.stop) :]

    def settle(self, session: Session) -> None:
        """Reads what the template still wants, so that the session ends where a turn ends."""
        if self.mark:
            session.feed(self.mark)
            self.mark = ""

    def restart(self, *, past: bool) -> None:
        """Nothing is owed."""
        self.mark = ""


class Story:
    """The user writes some, the model goes on, up to the end of a sentence."""

    SENTENCE_AFTER = 40  # tokens after which the next end of a sentence hands the turn over

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.mark = ""  # the last character of the story so far
        self.generation: Generation | None = None

    def reply(self, session: Session, text: str) -> Iterator[str]:
        """What comes next in the story, piece by piece."""
        glue = " " if text and self.mark and not self.mark.isspace() else ""
        prompt = glue + text
        self.mark = prompt[-1:] or self.mark
        if prompt or session.num_tokens == 0:
            self.generation = session.generate(prompt, **self._options)
        else:
            self.generation = session.generate(**self._options)
        for written, token in enumerate(self.generation, 1):
            self.mark = token[-1:] or self.mark
            if token:
                yield str(token)
            if written >= self.SENTENCE_AFTER and token.rstrip("\"'” ").endswith((".", "!", "?")):
                self.generation.close()
        if self.generation.finish_reason in ("eos", "stop_id"):
            self.mark = ""
            session.reset()

    def settle(self, session: Session) -> None:
        """A story can be saved anywhere."""

    def restart(self, *, past: bool) -> None:
        """The next turn is set off by a space if there is a past."""
        self.mark = "." if past else ""
