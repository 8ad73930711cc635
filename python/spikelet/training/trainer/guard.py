"""Watches the loss: a run that has gone wrong stops with a message that says where.

- A loss or gradient that is not finite stops the run before the optimiser takes it in.
- A loss explosion is a loss above three times the running median, and more than 1 nat above it,
  for 20 steps on end. The median is that of the last 100 losses that were not so high, and nothing
  is judged before 20 of them are known: single spikes, a rough start and small losses that
  fluctuate are all left alone.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import TYPE_CHECKING

import torch

from spikelet.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

WINDOW = 100
KNOWN = 20
PATIENCE = 20
FACTOR = 3.0
MARGIN = 1.0


class LossGuard:
    """Finds loss explosions. Its memory is two numbers lists that a checkpoint can hold."""

    def __init__(self, losses: Iterable[float] = (), high: int = 0) -> None:
        self.losses = deque(losses, maxlen=WINDOW)
        self.high = high
        """Steps on end whose loss was too high."""

    def exploded(self, loss: float) -> bool:
        """Take the loss of a step in; True when it has been too high for too long."""
        if len(self.losses) >= KNOWN:
            median = self.median
            if loss > FACTOR * median and loss > median + MARGIN:
                self.high += 1
                return self.high >= PATIENCE
        self.high = 0
        self.losses.append(loss)
        return False

    @property
    def median(self) -> float:
        """Of the losses that count."""
        return statistics.median(self.losses) if self.losses else math.nan


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the norm of the gradient by layer, the worst first: NaN, infinite, then by size."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            norm = float(torch.linalg.vector_norm(parameter.grad.float()))
            layer = _layer(name)
            squares[layer] = squares.get(layer, 0.0) + norm * norm
    norms = {layer: math.sqrt(value) for layer, value in squares.items()}
    return dict(sorted(norms.items(), key=lambda item: (not math.isnan(item[1]), -_size(item[1]))))


def _size(norm: float) -> float:
    return 0.0 if math.isnan(norm) else norm


def _layer(parameter: str) -> str:
    """``blocks.3.att`` of ``blocks.3.att.key.weight``; ``head`` of ``head.weight``."""
    parts = parameter.split(".")
    if len(parts) > 2 and parts[1].isdigit():
        return ".".join(parts[:3])
    return parts[0]


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of the parameters with values that are not finite."""
    return [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]


def stop_message(step: int, what: str, model: nn.Module, way_back: str) -> TrainingError:
    """Return the error that ends a run which has gone wrong."""
    bad = not_finite(model)
    if bad:
        what += f"; weights that are not finite: {', '.join(bad[:3])}"
    norms = list(gradient_norms(model).items())
    if norms:
        what += ". Gradient norms by layer, worst first: "
        what += ", ".join(f"{layer} {norm:.3g}" for layer, norm in norms[:5])
        what += f" and {len(norms) - 5} more" if len(norms) > 5 else ""
    return TrainingError(f"step {step}: {what}. {way_back}")
