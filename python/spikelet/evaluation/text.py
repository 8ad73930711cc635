"""How well a model predicts a text.

A text is one stream: the state runs on through the whole of it. Its first token is read but not
predicted, because nothing comes before it; neither its loss nor its bytes are counted. Bits per
byte is over the UTF-8 bytes of all other tokens, so models with different tokenizers can be
compared by it; loss and perplexity, which are per token, cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spikelet.errors import OptionError

if TYPE_CHECKING:
    from spikelet import Model

PIECE = 512  # tokens between two signs of life


@dataclass
class TextScore:
    """What a text cost."""

    text: str
    """Its name."""
    tokens: int = 0
    """Predicted tokens."""
    bytes: int = 0
    """UTF-8 bytes of the predicted tokens."""
    nats: float = 0.0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the loss, held below what overflows."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Of all bytes but the first token's; None where there is none."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    def as_dict(self) -> dict[str, Any]:
        """Sums and means, for JSON."""
        return {
            **asdict(self),
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


def score_text(
    model: Model,
    text: str,
    *,
    name: str = "text",
    context: int | None = None,
    progress: Callable[[TextScore, int], object] | None = None,
) -> TextScore:
    """Scores a text through one running state, a piece at a time.

    Args:
        model: the model, with a tokenizer.
        text: the text; at least two tokens.
        name: what to call it in the result and in errors.
        context: forget everything after so many tokens.
        progress: is called after every piece with the score so far and the tokens of the text.
    """
    if context is not None and context < 1:
        raise OptionError(f"option `context`: needs a number of at least 1, not {context}")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise OptionError(f"{name}: nothing to predict in a text of {len(ids)} tokens")
    # A special token stands for no bytes, but its name was written out in the text.
    first = tokenizer.token_bytes(ids[0]) or (tokenizer.id_to_token(ids[0]) or "").encode()
    total = len(ids) - 1
    num_bytes = len(text.encode()) - len(first)
    score = TextScore(name)
    start = time.perf_counter()
    for begin in range(0, total, context or total):
        state = model.new_state()
        end = min(begin + (context or total), total)
        for at in range(begin, end, PIECE):
            # A piece begins with the last id of the one before, which the state has not read.
            piece = ids[at : min(at + PIECE, end) + 1]
            score.nats -= float(model.score(piece, state).sum(dtype="float64"))
            score.tokens = at + len(piece) - 1
            score.bytes = num_bytes * score.tokens // total
            if progress is not None:
                progress(score, total)
    score.seconds = time.perf_counter() - start
    return score
