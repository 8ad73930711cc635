"""What a generation yields: a token that is its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class TokenLogprob(NamedTuple):
    """A token that might have been, and the natural logarithm of its probability."""

    id: int
    logprob: float


class Token(str):
    """A piece of generated text, as a `str`, and the token that made it.

    The text is empty while a character or a possible stop string is incomplete; the tokens of a
    generation, joined, are its text.

    Attributes:
        id: the token's id.
        logprob: natural logarithm of its probability under the model, before sampling options act.
        top_logprobs: the most probable tokens, best first, as many as `logprobs` asked for.
        drafted: whether it was guessed ahead and then verified.
    """

    __slots__ = ("drafted", "id", "logprob", "top_logprobs")

    id: int
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...]
    drafted: bool

    def __new__(
        cls,
        text: str,
        id: int,
        logprob: float,
        top_logprobs: tuple[TokenLogprob, ...] = (),
        drafted: bool = False,
    ) -> Self:
        token = super().__new__(cls, text)
        values = (id, logprob, top_logprobs, drafted)
        for name, value in zip(("id", "logprob", "top_logprobs", "drafted"), values, strict=True):
            object.__setattr__(token, name, value)
        return token

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a token cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a token cannot be changed: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Token, (str(self), self.id, self.logprob, self.top_logprobs, self.drafted)


async def next_token(advance: Callable[[], None], take: Callable[[], Token | None]) -> Token:
    """`Generation.__anext__`: the passes run in the event loop's thread pool.

    `advance` runs them until `take` has a token, or the end. A token that is made while the
    awaiting task is cancelled waits in the generation.
    """
    import asyncio

    await asyncio.get_running_loop().run_in_executor(None, advance)
    token = take()
    if token is None:
        raise StopAsyncIteration
    return token
