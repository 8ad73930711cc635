"""Drawing ids from a torch module one by one, its state carried on.

The engine is much faster; this is for modules it does not know, and for GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from spikelet.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


def step_by_step(
    model: Any,
    prompt: Sequence[int],
    count: int,
    *,
    stop_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[int]:
    """Draw up to ``count`` ids after ``prompt``; every id is read once, in evaluation mode.

    Args:
        model: with ``hidden(ids, state)`` and ``head``.
        prompt: at least one id.
        count: most ids to draw.
        stop_ids: end the text, and are not part of it.
        temperature: divides the logits; 0 always takes the likeliest id.
        top_p: draw from the likeliest ids that together have this probability.
        seed: same seed, same ids; None draws one.
    """
    if not temperature >= 0:
        raise OptionError(f"temperature is {temperature}; 0 or more is needed")
    if not 0 < top_p <= 1:
        raise OptionError(f"top_p is {top_p}; it must lie in (0, 1]")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return draw_ids(model, prompt, count, stop_ids, temperature, top_p, generator)


def draw_ids(
    model: Any,
    prompt: Sequence[int],
    count: int,
    stop_ids: Sequence[int],
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
) -> Iterator[int]:
    """Do what ``step_by_step`` does with a generator of one's own; None is torch's global one."""
    ids = list(prompt)
    device = next(model.parameters()).device
    state = None
    model.eval()
    for _ in range(count):
        with torch.no_grad():
            hidden, state = model.hidden(torch.tensor([ids], device=device), state)
            logits = model.head(hidden[0, -1]).float().cpu()
        chosen = _draw(logits, temperature, top_p, generator)
        if chosen in stop_ids:
            return
        yield chosen
        ids = [chosen]


def _draw(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
