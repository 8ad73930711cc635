"""The fused kernels as torch operators: gradients, shapes for tracing, and the choice by device.

A device's kernels are a module with the functions of ``ops/cpu.py``: that one for CPU, and
``ops/cuda.py``, which also says whether it is ``available()``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spikelet.training.ops import cpu


@functools.cache
def kernels(device: str) -> Any:
    """Return the module with the kernels of a device type, or None where there is none."""
    if device == "cpu":
        return cpu
    if device != "cuda":
        return None
    from spikelet.training.ops import cuda

    return cuda if cuda.available() else None


def fused(device: str) -> bool:
    """Whether a device type has kernels."""
    return kernels(device) is not None


def reads_bfloat16(device: str) -> bool:
    """Whether the kernels of a device type take bfloat16 for k, v and the input of neurons."""
    return fused(device) and torch.bfloat16 in kernels(device).DTYPES


for _constant in (fused, reads_bfloat16):
    # All that torch.compiler.assume_constant_result does, but it would import the whole compiler,
    # which doubles the time that importing this takes.
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010 - no name that mypy knows


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs)


# WKV-4


@torch.library.custom_op("spikelet::wkv4", mutates_args=())
def wkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ops.wkv4``."""
    result: tuple[Tensor, Tensor] = kernels(k.device.type).wkv4_forward(w, u, k, v, state)
    return result


@wkv4.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return state.new_empty(k.shape), state.new_empty(state.shape)


@torch.library.custom_op("spikelet::wkv4_backward", mutates_args=())
def wkv4_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of w, u, k, v and state."""
    grads: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = kernels(k.device.type).wkv4_backward(
        w, u, k, v, state, gy, gstate_out
    )
    return grads


@wkv4_backward.register_fake
def _(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        w.new_empty(w.shape),
        u.new_empty(u.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        state.new_empty(state.shape),
    )


def _wkv4_grad(ctx: Any, gy: Tensor, gstate_out: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = wkv4_backward(*ctx.saved_tensors, gy, gstate_out)
    return grads


wkv4.register_autograd(_wkv4_grad, setup_context=_save)


# LIF


@torch.library.custom_op("spikelet::lif", mutates_args=())
def lif(
    x: Tensor, membrane: Tensor, decay: Tensor | None, surrogate: str, alpha: float
) -> tuple[Tensor, Tensor]:
    """See ``ops.lif``; ``alpha`` is never 0 here."""
    result: tuple[Tensor, Tensor] = kernels(x.device.type).lif_forward(x, membrane, decay)
    return result


@lif.register_fake
def _(
    x: Tensor, membrane: Tensor, decay: Tensor | None, surrogate: str, alpha: float
) -> tuple[Tensor, Tensor]:
    return membrane.new_empty(x.shape), membrane.new_empty(membrane.shape)


@torch.library.custom_op("spikelet::lif_backward", mutates_args=())
def lif_backward(
    x: Tensor,
    membrane: Tensor,
    decay: Tensor | None,
    surrogate: str,
    alpha: float,
    gspikes: Tensor,
    gmembrane_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, membrane and decay; the last has no elements without a decay."""
    grads: tuple[Tensor, Tensor, Tensor] = kernels(x.device.type).lif_backward(
        x, membrane, decay, surrogate, alpha, gspikes, gmembrane_out
    )
    return grads


@lif_backward.register_fake
def _(
    x: Tensor,
    membrane: Tensor,
    decay: Tensor | None,
    surrogate: str,
    alpha: float,
    gspikes: Tensor,
    gmembrane_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = 0 if decay is None else x.shape[2]
    gmembrane = membrane.new_empty(membrane.shape)
    return x.new_empty(x.shape), gmembrane, membrane.new_empty(channels)


def _lif_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    x, membrane, decay, surrogate, alpha = inputs
    ctx.save_for_backward(x, membrane, decay)
    ctx.surrogate = surrogate, alpha


def _lif_grad(ctx: Any, gspikes: Tensor, gmembrane_out: Tensor) -> tuple[Tensor | None, ...]:
    x, membrane, decay = ctx.saved_tensors
    gx, gmembrane, gdecay = lif_backward(x, membrane, decay, *ctx.surrogate, gspikes, gmembrane_out)
    return gx, gmembrane, None if decay is None else gdecay, None, None


lif.register_autograd(_lif_grad, setup_context=_lif_save)


# The decay of neurons that learn it


@torch.library.custom_op("spikelet::sigmoid", mutates_args=(), device_types="cpu")
def sigmoid(x: Tensor) -> Tensor:
    """Sigmoid of a vector with the engine's bits."""
    return cpu.sigmoid(x)


@sigmoid.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _sigmoid_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _sigmoid_grad(ctx: Any, grad: Tensor) -> Tensor:
    (y,) = ctx.saved_tensors
    result: Tensor = grad * y * (1 - y)
    return result


sigmoid.register_autograd(_sigmoid_grad, setup_context=_sigmoid_save)


# Token shift


@torch.library.custom_op("spikelet::mix", mutates_args=())
def mix(x: Tensor, last: Tensor, mixes: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """See ``ops.token_mix``."""
    mixed: list[Tensor] = kernels(x.device.type).mix_forward(x, last, mixes, dtype)
    return mixed


@mix.register_fake
def _(x: Tensor, last: Tensor, mixes: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for _ in mixes]


@torch.library.custom_op("spikelet::mix_backward", mutates_args=())
def mix_backward(
    x: Tensor, last: Tensor, mixes: list[Tensor], gout: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, last and all mixes together, ``[mixes, channels]``."""
    grads: tuple[Tensor, Tensor, Tensor] = kernels(x.device.type).mix_backward(x, last, mixes, gout)
    return grads


@mix_backward.register_fake
def _(
    x: Tensor, last: Tensor, mixes: list[Tensor], gout: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), last.new_empty(last.shape), x.new_empty(len(mixes), x.shape[2])


def _mix_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    x, last, mixes, _ = inputs
    ctx.save_for_backward(x, last, *mixes)


def _mix_grad(ctx: Any, gout: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], None]:
    x, last, *mixes = ctx.saved_tensors
    gx, glast, gmixes = mix_backward(x, last, mixes, gout)
    return gx, glast, list(gmixes), None


mix.register_autograd(_mix_grad, setup_context=_mix_save)
