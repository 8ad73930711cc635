"""Spiking neurons as modules: layers of leaky integrate-and-fire neurons over time.

The time step is the token. ``spikes, membrane = neurons(x, membrane)``, where ``x`` is
``[batch, time, channels]`` and ``membrane`` ``[batch, channels]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikelet.training import ops


class LIF(nn.Module):
    """Neurons with a time constant of 2 tokens, threshold 1 and a hard reset to 0.

    SpikeGPT's (Zhu et al. 2023, arXiv 2302.13939). ``h = v + (x - v) / 2``, a spike where
    ``h >= 1``, then ``v = h (1 - spike)``.

    Args:
        channels: neurons.
        surrogate: see ``ops.surrogate_slope``.
        alpha: its steepness; 0 is the usual one.
        fused: run the fused kernel; False takes the loop in plain torch.
    """

    def __init__(
        self, channels: int, surrogate: str = "atan", alpha: float = 0.0, fused: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.surrogate, self.alpha = channels, surrogate, alpha
        self.run = ops.lif if fused else ops.naive_lif

    def decay(self) -> Tensor | None:
        """Return k of ``h = v + (x - v) k``, ``[channels]``; None is one half."""
        return None

    def forward(self, x: Tensor, membrane: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return spikes in the shape of ``x``, and the membrane after them."""
        return self.run(x, membrane, self.decay(), self.surrogate, self.alpha)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.channels}, surrogate={self.surrogate!r}"


class PLIF(LIF):
    """Neurons that learn their decay, ``k = sigmoid(w)`` per channel (Fang et al. 2021, PLIF).

    ``w`` starts at 0, where they are ``LIF`` neurons.
    """

    def __init__(
        self, channels: int, surrogate: str = "atan", alpha: float = 0.0, fused: bool = True
    ) -> None:
        super().__init__(channels, surrogate, alpha, fused)
        self.w = nn.Parameter(torch.zeros(channels))

    def decay(self) -> Tensor:
        """Return k of ``h = v + (x - v) k``, ``[channels]``."""
        return ops.decay(self.w)
