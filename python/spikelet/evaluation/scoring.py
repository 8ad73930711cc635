"""Log probabilities of continuations after contexts, each token computed once.

A token's logits have the same bits however the tokens before it are cut into calls. So requests
that begin alike share that beginning: the state after it is copied, not computed again. It changes
the time, never a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from spikelet import Model, State

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of a context, at least one, and of what comes after it."""
Progress = Callable[[int, int], object]
"""Is called with the requests done and the requests in all."""
GREEDY_PIECE = 64  # tokens whose logits are held at once


@dataclass(frozen=True)
class Scored:
    """What a model thinks of a continuation."""

    log_prob: float
    """Natural logarithm of its probability: the sum over its tokens."""
    num_tokens: int
    greedy: bool | None
    """Whether every token was the likeliest one; None if nobody asked."""


def prefix_id(model: Model) -> int | None:
    """What stands before a text with nothing before it: begin of text, else end of text."""
    config = model.config
    return config.eos_token_id if config.bos_token_id is None else config.bos_token_id


def encode_pair(model: Model, context: str, continuation: str) -> Pair:
    """Ids of a context and a continuation, by the rules of lm-evaluation-harness.

    The two are joined before they become tokens. White space at the end of the context belongs to
    the continuation. Of the joined tokens, as many are dropped as the context has when it stands
    alone; those are read in their place.

    An empty context is the token of `prefix_id`. A model without one begins with an empty state,
    and the first token of the continuation, which nothing predicts, is read and not scored.
    """
    encode = model.tokenizer.encode
    if context:
        bare = context.rstrip()
        before = tuple(encode(bare))
        joined = tuple(encode(context + continuation))
        # A tokenizer may merge across the border. The harness then keeps the context's own tokens.
        if before:
            return before, joined[len(before) :]
        return after_nothing(model, joined)
    return after_nothing(model, tuple(encode(continuation)))


def after_nothing(model: Model, ids: tuple[int, ...]) -> Pair:
    """Ids that nothing stands before, and what they are predicted from."""
    prefix = prefix_id(model)
    if prefix is None or ids[:1] == (prefix,):
        return ids[:1], ids[1:]
    return (prefix,), ids


def score_pairs(
    model: Model,
    pairs: Sequence[Pair],
    *,
    greedy: bool = False,
    progress: Progress | None = None,
) -> list[Scored]:
    """Scores continuations, in the order of `pairs`.

    Args:
        model: the model.
        pairs: contexts and continuations. An empty continuation has probability 1.
        greedy: also say whether greedy decoding would write the continuation.
        progress: is told how far it is.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, (context, _) in enumerate(pairs):
        by_context.setdefault(context, []).append(index)
    results: list[Scored | None] = [None] * len(pairs)
    done = 0
    for context, indices in by_context.items():
        start = _Start(model, context)
        unique: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            unique.setdefault(pairs[index][1], []).append(index)
        for continuation, scores in _walk(model, start, sorted(unique)):
            scored = Scored(
                float(scores.sum(dtype=np.float64)),
                len(continuation),
                start.would_write(continuation) if greedy else None,
            )
            for index in unique[continuation]:
                results[index] = scored
            done += len(unique[continuation])
            if progress is not None:
                progress(done, len(pairs))
    return [scored for scored in results if scored is not None]


class _Start:
    """The state after a context but for its last token, which is read with what comes after it."""

    def __init__(self, model: Model, context: tuple[int, ...]) -> None:
        self._model = model
        self._likeliest: int | None = None
        self.last = context[-1:]
        self.state = model.new_state()
        if len(context) > 1:
            model.forward(context[:-1], self.state, all_logits=False)

    def would_write(self, continuation: tuple[int, ...]) -> bool:
        """Whether greedy decoding writes the continuation; most fail at its first token."""
        if not continuation:
            return True
        if self._likeliest is None:
            logits = self._model.forward(self.last, self.state.copy(), all_logits=False)
            self._likeliest = int(logits.argmax())
        if continuation[0] != self._likeliest:
            return False
        state = self.state.copy()
        read = self.last + continuation[:-1]
        for at in range(0, len(read), GREEDY_PIECE):
            logits = self._model.forward(read[at : at + GREEDY_PIECE], state)
            if not np.array_equal(logits.argmax(axis=1), continuation[at : at + GREEDY_PIECE]):
                return False
        return True


@dataclass
class _Node:
    """Continuations `low` to `high` of the sorted ones: their first `depth` tokens are the same."""

    low: int
    high: int
    depth: int
    state: State
    """Has seen the context and these tokens but for the last one."""
    scores: list[NDArray[np.float32]] = field(default_factory=list)


def _walk(
    model: Model, start: _Start, continuations: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """Each continuation with the log probabilities of its tokens; branches of the tree in turn."""
    nodes = [_Node(0, len(continuations), 0, start.state.copy())]
    while nodes:
        node = nodes.pop()
        first, last = continuations[node.low], continuations[node.high - 1]
        # They are sorted: what the first and the last share, all share.
        common = _common(first, last)
        scores, state = node.scores, node.state
        if common > node.depth:
            before = first[node.depth - 1 : node.depth] if node.depth else start.last
            scores = [*scores, model.score(before + first[node.depth : common], state)]
        low = node.low
        if len(first) == common:
            yield first, np.concatenate(scores) if scores else np.zeros(0, np.float32)
            low += 1
        # Children in reverse, so that the stack gives them in order.
        high = node.high
        while high > low:
            token = continuations[high - 1][common]
            begin = high - 1
            while begin > low and continuations[begin - 1][common] == token:
                begin -= 1
            nodes.append(_Node(begin, high, common, state.copy(), scores))
            high = begin


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two continuations share at their beginning."""
    same = (count for count, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(same, min(len(one), len(other)))
