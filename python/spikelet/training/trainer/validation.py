"""A look at the model on the way: loss on the validation text, and a text of its own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from spikelet.training.data import TokenData, validation_batches
from spikelet.training.trainer.distributed import add_up
from spikelet.training.trainer.step import autocast

if TYPE_CHECKING:
    from spikelet.training.data import SplitSizes, TextTokenizer
    from spikelet.training.trainer.distributed import World
    from spikelet.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Validation:
    """Result of a pass over the validation text."""

    loss: float
    """Mean cross entropy, nats per token."""
    bits_per_byte: float | None
    """The same in bits, over the bytes of text that a token stands for on average."""


def bits_per_byte(loss: float, sizes: SplitSizes) -> float | None:
    """Turn nats per token into bits per UTF-8 byte of the text; None where that is not known."""
    if not sizes.bytes:
        return None
    return loss / math.log(2) * sizes.tokens / sizes.bytes


@torch.no_grad()
def validate(
    model: Any, data: TokenData, config: TrainerConfig, world: World, device: torch.device
) -> Validation:
    """Measure the loss on the first ``eval_iters`` batches, every window from a fresh state."""
    batches = validation_batches(data.valid, model.config.ctx_len, config.batch_size)
    chosen = itertools.islice(batches, config.eval_iters or None)
    nats, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    for inputs, targets in itertools.islice(chosen, world.rank, None, world.size):
        with autocast(config, device):
            loss = model(inputs.to(device), targets.to(device))
        nats += float(loss) * targets.numel()
        tokens += targets.numel()
    model.train(was_training)
    nats, count = add_up(world, [nats, tokens])
    loss = nats / max(1.0, count)
    return Validation(loss, bits_per_byte(loss, data.valid_sizes))


def draw_sample(
    model: Any, tokenizer: TextTokenizer, data: TokenData, config: TrainerConfig
) -> str:
    """Return ``sample_prompt`` and how the model goes on; the same draws at every step."""
    prompt = tokenizer.encode(config.sample_prompt)
    drawn = model.generate(
        prompt or [data.end_of_text],
        config.sample_tokens,
        stop_ids=[data.end_of_text],
        generator=torch.Generator().manual_seed(config.seed),
    )
    return tokenizer.decode([*prompt, *drawn])
