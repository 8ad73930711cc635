"""The parts that SpikeGPT and RWKV-4 share: time mixing, channel mixing, state, initialisation.

RWKV (Peng et al. 2023, arXiv 2305.13048), version 4, with the parameter names and the
initialisation of RWKV-LM's v4 ``model.py``, which SpikeGPT took over.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spikelet.training import ops
from spikelet.training.config import RWKV4Config, SpikeGPTConfig

Config = SpikeGPTConfig | RWKV4Config


class LayerState(NamedTuple):
    """What one block carries from token to token, float32."""

    att_shift: Tensor
    """``[batch, channels]``: ``ln1`` of the last token."""
    ffn_shift: Tensor
    """``[batch, channels]``: ``ln2`` of the last token."""
    wkv: Tensor
    """``[batch, 3, channels]``: aa, bb, pp (unused in an ffnPre block)."""
    membrane1: Tensor
    """``[batch, channels]``, or ``[batch, 0]`` in a model without neurons."""
    membrane2: Tensor
    """``[batch, channels]``, or ``[batch, 0]`` in a model without neurons."""

    def detach(self) -> LayerState:
        """Cut the graph here: truncated back-propagation through time."""
        return LayerState(*(part.detach() for part in self))


def _ramp(channels: int, power: float) -> Tensor:
    """``(i / channels) ** power``, ``[1, 1, channels]``: from quick to slow channels."""
    return (torch.arange(channels, dtype=torch.float32) / channels).pow(power)[None, None]


class TimeMix(nn.Module):
    """RWKV-4 attention: token shift, WKV, receptance gate (section 3.1.2)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        channels = config.n_embd
        self.fused = config.fused
        depth = layer / max(1, config.n_layer - 1)  # 0 .. 1
        rest = 1 - layer / config.n_layer  # 1 .. almost 0
        position = torch.arange(channels, dtype=torch.float32) / max(1, channels - 1)
        self.time_decay = nn.Parameter(-5 + 8 * position.pow(0.7 + 1.3 * depth))
        zigzag = (torch.arange(channels) + 1) % 3 - 1
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * zigzag.float())
        self.time_mix_k = nn.Parameter(_ramp(channels, rest))
        self.time_mix_v = nn.Parameter(_ramp(channels, rest) + 0.3 * depth)
        self.time_mix_r = nn.Parameter(_ramp(channels, 0.5 * rest))
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output ``[batch, time, channels]`` and the WKV state after it."""
        mix = ops.token_mix if self.fused else ops.naive_token_mix
        mixes = (self.time_mix_k, self.time_mix_v, self.time_mix_r)
        xk, xv, xr = mix(x, shift, mixes)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)
        run = ops.wkv4 if self.fused else ops.naive_wkv4
        y, wkv = run(-torch.exp(self.time_decay), self.time_first, k, v, wkv)
        return self.output(torch.sigmoid(r) * y), wkv


class _ReluSquared(torch.autograd.Function):
    """``relu(x)²``, with two passes backward where autograd takes four over the widest tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        result: Tensor = (grad + grad) * positive
        return result


def relu_squared(x: Tensor) -> Tensor:
    """Return ``relu(x)²``, in the shape and type of ``x``."""
    squared: Tensor = _ReluSquared.apply(x)
    return squared


class ChannelMix(nn.Module):
    """RWKV-4 feed-forward part: token shift, squared ReLU, receptance gate (section 3.1.3)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        channels = config.n_embd
        self.fused = config.fused
        rest = 1 - layer / config.n_layer
        self.time_mix_k = nn.Parameter(_ramp(channels, rest))
        self.time_mix_r = nn.Parameter(_ramp(channels, rest))
        self.key = nn.Linear(channels, config.intermediate_size, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(config.intermediate_size, channels, bias=False)

    def forward(
        self, x: Tensor, shift: Tensor, count: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, ``[batch, time, channels]``.

        With ``count`` also the share of keys above zero, a scalar, else None.
        """
        mix = ops.token_mix if self.fused else ops.naive_token_mix
        xk, xr = mix(x, shift, (self.time_mix_k, self.time_mix_r))
        k = relu_squared(self.key(xk))
        # Several times as quick as torch.count_nonzero.
        density = k.detach().sign().mean(dtype=torch.float32) if count else None
        gated: Tensor = torch.sigmoid(self.receptance(xr)) * self.value(k)
        return gated, density


_ZERO_AT_START = {"att.key", "att.receptance", "att.output", "ffn.receptance", "ffn.value"}


@torch.no_grad()
def initialise_matrices(model: nn.Module) -> None:
    """Initialise the matrices as the authors do (time_* are set where they are made).

    Orthogonal with gain sqrt(rows / columns) where that exceeds 1; the embedding tiny; half gain
    for the head; zero for what a layer starts silent with: att.key, att.receptance, att.output,
    ffn.receptance and ffn.value.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            size = max(module.weight.shape)
            nn.init.orthogonal_(module.weight, gain=1e-4 * math.sqrt(size))
        if not isinstance(module, nn.Linear):
            continue
        kind = ".".join(name.replace("ffnPre", "ffn").split(".")[-2:])
        if kind in _ZERO_AT_START:
            nn.init.zeros_(module.weight)
            continue
        rows, columns = module.weight.shape
        gain = math.sqrt(max(1.0, rows / columns))
        nn.init.orthogonal_(module.weight, gain=gain * (0.5 if name == "head" else 1.0))
