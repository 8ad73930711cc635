"""Scores from logits by plain arithmetic, and models to score with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import spikelet


def naive_score(
    model: spikelet.Model, context: Sequence[int], continuation: Sequence[int]
) -> tuple[float, bool]:
    """log p(continuation | context) in float64, and whether each id had the greatest logit."""
    ids = [*context, *continuation]
    if not continuation:
        return 0.0, True
    logits = model.forward(ids[:-1], model.new_state()).astype(np.float64)
    logits = logits[len(context) - 1 :]
    top = logits.max(axis=1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    chosen = log_probs[np.arange(len(continuation)), list(continuation)]
    return float(chosen.sum()), logits.argmax(axis=1).tolist() == list(continuation)
