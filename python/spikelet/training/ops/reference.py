"""The operators as loops over tokens in plain torch: what the fused kernels are compared with.

They run on any device and in any floating type, get their gradients from autograd, and step in
where no fused kernel is at hand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikelet.training.config import surrogate_alpha

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WKV_EMPTY_EXPONENT = -1e38
"""The ``pp`` of a WKV state that has seen nothing."""


def empty_wkv_state(batch: int, channels: int, like: Tensor) -> Tensor:
    """Return the WKV state before the first token, ``[batch, 3, channels]`` (aa, bb, pp).

    Type and device are those of ``like``.
    """
    state = like.new_zeros(batch, 3, channels)
    state[:, 2] = WKV_EMPTY_EXPONENT
    return state


def surrogate_slope(z: Tensor, surrogate: str = "atan", alpha: float = 0.0) -> Tensor:
    """Return what stands in for the derivative of a step at ``z``, in the shape and type of ``z``.

    - ``"atan"``: ``alpha / 2 / (1 + (pi / 2 alpha z)^2)``, usual alpha 2 (Fang et al. 2021, arXiv
      2007.05785; SpikeGPT's choice)
    - ``"sigmoid"``: ``alpha s (1 - s)`` with ``s = sigmoid(alpha z)``, usual alpha 4 (spikingjelly)
    - ``"fast_sigmoid"``: ``1 / (1 + alpha |z|)^2``, usual alpha 25 (Zenke and Ganguli 2018, arXiv
      1705.11146; snntorch)
    """
    alpha = surrogate_alpha(surrogate, alpha)
    if surrogate == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)
    if surrogate == "sigmoid":
        s = torch.sigmoid(alpha * z)
        return alpha * s * (1 - s)
    return 1 / (1 + alpha * z.abs()) ** 2


class _Step(torch.autograd.Function):
    """Heaviside step forward (1 where ``z >= 0``), a surrogate's slope backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate, alpha
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return grad * surrogate_slope(z, *ctx.surrogate), None, None


def surrogate_step(z: Tensor, surrogate: str = "atan", alpha: float = 0.0) -> Tensor:
    """Spike where ``z >= 0``; the gradient is that of ``surrogate_slope``."""
    spikes: Tensor = _Step.apply(z, surrogate, alpha)
    return spikes


def atan_step(z: Tensor) -> Tensor:
    """Spike where ``z >= 0``, with the ATan surrogate gradient of alpha 2."""
    return surrogate_step(z)


def naive_token_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """Do what ``token_mix`` does in plain torch."""
    before = torch.cat((last[:, None].to(x.dtype), x[:, :-1]), dim=1)
    return [x * mix.flatten() + before * (1 - mix.flatten()) for mix in mixes]


def naive_wkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what ``wkv4`` does, token by token in plain torch (RWKV, Peng et al. 2023, app. D)."""
    if state is None:
        state = empty_wkv_state(k.shape[0], k.shape[2], k.detach())
    aa, bb, pp = state.unbind(1)
    outputs = []
    for t in range(k.shape[1]):
        kt, vt = k[:, t], v[:, t]
        q = torch.maximum(pp, u + kt)
        e1, e2 = torch.exp(pp - q), torch.exp(u + kt - q)
        outputs.append((e1 * aa + e2 * vt) / (e1 * bb + e2))
        q = torch.maximum(pp + w, kt)
        e1, e2 = torch.exp(pp + w - q), torch.exp(kt - q)
        aa, bb, pp = e1 * aa + e2 * vt, e1 * bb + e2, q
    return torch.stack(outputs, dim=1), torch.stack((aa, bb, pp), dim=1)


def naive_lif(
    x: Tensor,
    membrane: Tensor | None = None,
    decay: Tensor | None = None,
    surrogate: str = "atan",
    alpha: float = 0.0,
    *,
    step: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what ``lif`` does, token by token in plain torch.

    ``step`` turns ``h - 1`` into spikes in place of the surrogate's step: a smooth one makes the
    whole neuron differentiable.
    """
    if step is None:

        def step(z: Tensor) -> Tensor:
            return surrogate_step(z, surrogate, alpha)

    k: Tensor | float = 0.5 if decay is None else decay
    v = x.new_zeros(x.shape[0], x.shape[2]) if membrane is None else membrane
    spikes = []
    for t in range(x.shape[1]):
        h = v + (x[:, t] - v) * k
        spike = step(h - 1)
        v = h * (1 - spike)
        spikes.append(spike)
    return torch.stack(spikes, dim=1), v
