"""The learning rate as a function of tokens seen, so that it does not change with the batch size.

- ``cosine``: up from ``lr_final`` over ``warmup_tokens``, then half a cosine down to it.
- ``trapezoid``: the same way up, constant, then straight down over the last ``decay_share``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikelet.training.trainer_config import TrainerConfig


def learning_rate(config: TrainerConfig, tokens: int, length: int) -> float:
    """Return the rate of the step whose last token is number ``tokens``.

    Args:
        config: its ``learning_rate``, ``lr_final``, ``warmup_tokens``, ``schedule`` and so on.
        tokens: seen after the step. Beyond the end of the schedule the rate stays ``lr_final``.
        length: tokens of the whole run; ``final_tokens``, where it is set, comes before it.
    """
    if not config.lr_decay:
        return config.learning_rate
    peak, final = config.learning_rate, config.lr_final
    end = config.final_tokens or length
    if tokens < config.warmup_tokens:
        return final + (peak - final) * tokens / config.warmup_tokens
    if config.schedule == "cosine":
        left = max(1, end - config.warmup_tokens)
        progress = min(1.0, (tokens - config.warmup_tokens) / left)
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
    left_share = (end - tokens) / (config.decay_share * end)
    return final + (peak - final) * min(1.0, max(0.0, left_share))
