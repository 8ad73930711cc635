"""Loss of a module over a long text, its state carried from chunk to chunk as in generation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from spikelet.training.loss import head_loss

if TYPE_CHECKING:
    import numpy as np

    from spikelet.training.models.language_model import LanguageModel, State


@torch.no_grad()
def stream_bits(model: LanguageModel, stream: np.ndarray, start: int, chunk: int = 512) -> float:
    """Return the information content of a stream of ids in bits.

    Args:
        model: run in evaluation mode, in float32.
        stream: ids, end-of-text tokens between documents.
        start: id that stands before the first, so that every id of the stream is predicted.
        chunk: ids per pass; it changes memory and speed, not the result.
    """
    was_training = model.training
    model.eval()
    ids = torch.tensor([start, *stream.tolist()])
    state: State | None = None
    nats = 0.0
    for first in range(0, len(stream), chunk):
        part = ids[first : first + chunk + 1]
        hidden, state = model.hidden(part[None, :-1], state)
        loss = head_loss(hidden, model.head.weight, part[1:], l2wrap=0.0)
        nats += float(loss) * (len(part) - 1)
    model.train(was_training)
    return nats / math.log(2)
