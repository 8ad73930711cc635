"""WKV-4, LIF and token shift as torch operators, and their plain-torch twins.

``wkv4``, ``lif`` and ``token_mix`` run fused kernels in float32: on CPU those of the engine crate,
which give the bits of generation, on a GPU those of ``ops/cuda.py`` where it can run. Elsewhere,
and as the reference, the twins ``naive_*`` do the same in plain torch.

All take an optional initial state and return the final one, so a long text can be cut into chunks:
gradients of chained chunks are those of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikelet.training.config import surrogate_alpha
from spikelet.training.ops import operators
from spikelet.training.ops.reference import (
    WKV_EMPTY_EXPONENT,
    atan_step,
    empty_wkv_state,
    naive_lif,
    naive_token_mix,
    naive_wkv4,
    surrogate_slope,
    surrogate_step,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "WKV_EMPTY_EXPONENT",
    "atan_step",
    "decay",
    "empty_wkv_state",
    "lif",
    "naive_lif",
    "naive_token_mix",
    "naive_wkv4",
    "surrogate_slope",
    "surrogate_step",
    "token_mix",
    "wkv4",
]


def token_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """Mix each token with its predecessor, once per mix vector (RWKV, Peng et al. 2023, 3.1.1).

    ``out[j] = mixes[j] * x[t] + (1 - mixes[j]) * x[t - 1]``; ``last`` precedes the first token.

    Args:
        x: ``[batch, time, channels]``.
        last: ``[batch, channels]``.
        mixes: up to three vectors of ``channels`` elements.

    Returns:
        One ``[batch, time, channels]`` per mix: in bfloat16 where autocast would make it that for
        the matrix product that follows, else float32.
    """
    device = x.device.type
    if not operators.fused(device):
        return naive_token_mix(x, last, mixes)
    autocast = torch.is_autocast_enabled(device)
    half = autocast and torch.get_autocast_dtype(device) == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    vectors = [mix.flatten() for mix in mixes]
    mixed: list[Tensor] = operators.mix(x.float(), last.float(), vectors, dtype)
    return mixed


def wkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run WKV-4 (RWKV, Peng et al. 2023, equation 16), in the form whose exponentials stay below 1.

    Args:
        w: ``[channels]``, log decay per token, ``-exp(time_decay)``.
        u: ``[channels]``, bonus of the present token (``time_first``).
        k: ``[batch, time, channels]``.
        v: ``[batch, time, channels]``.
        state: ``[batch, 3, channels]`` (aa, bb, pp); None starts fresh. ``pp`` only sets the scale
            of ``aa`` and ``bb`` and gets no gradient of its own.

    Returns:
        The output ``[batch, time, channels]`` and the final state, both float32.
    """
    w, u = w.float(), u.float()
    device = k.device.type
    if not (k.dtype == v.dtype == torch.bfloat16 and operators.reads_bfloat16(device)):
        k, v = k.float(), v.float()
    if not operators.fused(device):
        return naive_wkv4(w, u, k, v, state)
    if state is None:
        state = empty_wkv_state(k.shape[0], k.shape[2], w.detach())
    result: tuple[Tensor, Tensor] = operators.wkv4(w, u, k, v, state)
    return result


def lif(
    x: Tensor,
    membrane: Tensor | None = None,
    decay: Tensor | None = None,
    surrogate: str = "atan",
    alpha: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run leaky integrate-and-fire neurons over time (SpikeGPT, Zhu et al. 2023, equations 2 to 4).

    ``h = v + (x - v) k``; a spike where ``h >= 1``; then ``v = h (1 - spike)``. The gradient takes
    a surrogate for the step's derivative and goes through the reset.

    Args:
        x: ``[batch, time, channels]``.
        membrane: ``[batch, channels]`` before the first token; None is zero.
        decay: k per channel, ``[channels]``; None is one half, a time constant of 2 tokens.
        surrogate: ``"atan"``, ``"sigmoid"`` or ``"fast_sigmoid"``, see ``surrogate_slope``.
        alpha: its steepness; 0 is the usual one.

    Returns:
        Spikes (0 or 1, the shape of ``x``) and the final membrane ``[batch, channels]``, float32.
    """
    alpha = surrogate_alpha(surrogate, alpha)
    device = x.device.type
    if not (x.dtype == torch.bfloat16 and operators.reads_bfloat16(device)):
        x = x.float()
    if not operators.fused(device):
        return naive_lif(x, membrane, decay, surrogate, alpha)
    if membrane is None:
        membrane = x.new_zeros(x.shape[0], x.shape[2], dtype=torch.float32)
    result: tuple[Tensor, Tensor] = operators.lif(x, membrane, decay, surrogate, alpha)
    return result


def decay(w: Tensor) -> Tensor:
    """Return the decay k of neurons that learn it, ``sigmoid(w)``, in the shape of ``w``, float32.

    On CPU with the engine's arithmetic: training and generation have the same spikes. (Fang et al.
    2021, arXiv 2007.05785, "PLIF".)
    """
    if w.device.type != "cpu":
        return torch.sigmoid(w.float())
    result: Tensor = operators.sigmoid(w.float())
    return result
