"""WKV-4, LIF and token shift as torch operators, and their plain-torch twins.

``wkv4`` and ``lif`` run the fused kernels of the engine crate on CPU in float32; ``naive_wkv4`` and
``naive_lif`` are the same mathematics as a loop over tokens in plain torch, on any device and in
any floating type, with gradients by autograd. The twins are the reference and the fallback.

Both take an optional initial state and return the final one, so a long text can be cut into chunks:
gradients of chained chunks are those of the whole.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spikelet import _spikelet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WKV_EMPTY_EXPONENT = -1e38
"""The ``pp`` of a WKV state that has seen nothing."""


def _array(tensor: Tensor) -> np.ndarray:
    """Show a contiguous CPU float32 tensor as an array on the same memory."""
    return tensor.detach().contiguous().numpy()


def _threads() -> int:
    return torch.get_num_threads()


def empty_wkv_state(batch: int, channels: int, like: Tensor) -> Tensor:
    """Return the WKV state before the first token, ``[batch, 3, channels]`` (aa, bb, pp)."""
    state = like.new_zeros(batch, 3, channels)
    state[:, 2] = WKV_EMPTY_EXPONENT
    return state


@torch.library.custom_op("spikelet::wkv4", mutates_args=(), device_types="cpu")
def _wkv4_op(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.empty(k.shape, dtype=torch.float32)
    state_out = torch.empty(state.shape, dtype=torch.float32)
    _spikelet.wkv4_forward(
        _array(w), _array(u), _array(k), _array(v), y.numpy(),
        state=_array(state), state_out=state_out.numpy(), threads=_threads(),
    )  # fmt: skip
    return y, state_out


@_wkv4_op.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return k.new_empty(k.shape), state.new_empty(state.shape)


@torch.library.custom_op("spikelet::wkv4_backward", mutates_args=(), device_types="cpu")
def _wkv4_backward_op(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gw, gu = torch.empty(w.shape), torch.empty(u.shape)
    gk, gv, gstate = torch.empty(k.shape), torch.empty(v.shape), torch.empty(state.shape)
    _spikelet.wkv4_backward(
        _array(w), _array(u), _array(k), _array(v), _array(gy),
        gw.numpy(), gu.numpy(), gk.numpy(), gv.numpy(),
        state=_array(state), gstate_out=_array(gstate_out), gstate=gstate.numpy(),
        threads=_threads(),
    )  # fmt: skip
    return gw, gu, gk, gv, gstate


@_wkv4_backward_op.register_fake
def _(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(w),
        torch.empty_like(u),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        torch.empty_like(state),
    )


def _wkv4_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs)


def _wkv4_grad(ctx: Any, gy: Tensor, gstate_out: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = _wkv4_backward_op(*ctx.saved_tensors, gy, gstate_out)
    return grads


_wkv4_op.register_autograd(_wkv4_grad, setup_context=_wkv4_save)


@torch.library.custom_op("spikelet::lif", mutates_args=(), device_types="cpu")
def _lif_op(x: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
    spikes = torch.empty(x.shape, dtype=torch.float32)
    membrane_out = torch.empty(membrane.shape, dtype=torch.float32)
    _spikelet.lif_forward(
        _array(x), spikes.numpy(),
        membrane=_array(membrane), membrane_out=membrane_out.numpy(), threads=_threads(),
    )  # fmt: skip
    return spikes, membrane_out


@_lif_op.register_fake
def _(x: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), membrane.new_empty(membrane.shape)


@torch.library.custom_op("spikelet::lif_backward", mutates_args=(), device_types="cpu")
def _lif_backward_op(
    x: Tensor, membrane: Tensor, gspikes: Tensor, gmembrane_out: Tensor
) -> tuple[Tensor, Tensor]:
    gx, gmembrane = torch.empty(x.shape), torch.empty(membrane.shape)
    _spikelet.lif_backward(
        _array(x), _array(gspikes), gx.numpy(),
        membrane=_array(membrane), gmembrane_out=_array(gmembrane_out),
        gmembrane=gmembrane.numpy(), threads=_threads(),
    )  # fmt: skip
    return gx, gmembrane


@_lif_backward_op.register_fake
def _(x: Tensor, membrane: Tensor, gspikes: Tensor, gmembrane_out: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), membrane.new_empty(membrane.shape)


def _lif_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs)


def _lif_grad(ctx: Any, gspikes: Tensor, gmembrane_out: Tensor) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = _lif_backward_op(*ctx.saved_tensors, gspikes, gmembrane_out)
    return grads


_lif_op.register_autograd(_lif_grad, setup_context=_lif_save)


def _bits(tensor: Tensor) -> np.ndarray:
    """Show a tensor as an array on the same memory; bfloat16, which NumPy lacks, as uint16."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@torch.library.custom_op("spikelet::mix", mutates_args=(), device_types="cpu")
def _mix_op(x: Tensor, last: Tensor, mixes: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    out = [torch.empty(x.shape, dtype=dtype) for _ in mixes]
    _spikelet.mix_forward(
        _array(x), _array(last), [_array(mix) for mix in mixes], [_bits(one) for one in out],
        threads=_threads(),
    )  # fmt: skip
    return out


@_mix_op.register_fake
def _(x: Tensor, last: Tensor, mixes: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for _ in mixes]


@torch.library.custom_op("spikelet::mix_backward", mutates_args=(), device_types="cpu")
def _mix_backward_op(
    x: Tensor, last: Tensor, mixes: list[Tensor], gout: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    gx, glast = torch.empty(x.shape), torch.empty(last.shape)
    gmixes = torch.empty(len(mixes), x.shape[2])
    _spikelet.mix_backward(
        _array(x), _array(last), [_array(mix) for mix in mixes], [_bits(one) for one in gout],
        gx.numpy(), glast.numpy(), gmixes.numpy(), threads=_threads(),
    )  # fmt: skip
    return gx, glast, gmixes


@_mix_backward_op.register_fake
def _(
    x: Tensor, last: Tensor, mixes: list[Tensor], gout: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), last.new_empty(last.shape), x.new_empty(len(mixes), x.shape[2])


def _mix_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    x, last, mixes, _ = inputs
    ctx.save_for_backward(x, last, *mixes)


def _mix_grad(ctx: Any, gout: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], None]:
    x, last, *mixes = ctx.saved_tensors
    gx, glast, gmixes = _mix_backward_op(x, last, mixes, gout)
    return gx, glast, list(gmixes), None


_mix_op.register_autograd(_mix_grad, setup_context=_mix_save)


def token_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """Mix each token with its predecessor, once per mix vector.

    ``out[j] = mixes[j] * x[t] + (1 - mixes[j]) * x[t - 1]``; ``last`` precedes the first token.

    Args:
        x: ``[batch, time, channels]``.
        last: ``[batch, channels]``.
        mixes: up to three vectors of ``channels`` elements.

    Returns:
        One ``[batch, time, channels]`` per mix: in bfloat16 where autocast would make it that for
        the matrix product that follows, else float32. The fused kernel runs on CPU.
    """
    if x.device.type != "cpu":
        return naive_token_mix(x, last, mixes)
    autocast = torch.is_autocast_enabled("cpu")
    half = autocast and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    vectors = [mix.flatten() for mix in mixes]
    mixed: list[Tensor] = _mix_op(x.float(), last.float(), vectors, dtype)
    return mixed


def naive_token_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """Do what ``token_mix`` does in plain torch."""
    before = torch.cat((last[:, None].to(x.dtype), x[:, :-1]), dim=1)
    return [x * mix.flatten() + before * (1 - mix.flatten()) for mix in mixes]


def wkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run WKV-4 over ``[batch, time, channels]``.

    Args:
        w: ``[channels]``, log decay per token, ``-exp(time_decay)``.
        u: ``[channels]``, bonus of the present token (``time_first``).
        k: ``[batch, time, channels]``.
        v: ``[batch, time, channels]``.
        state: ``[batch, 3, channels]`` (aa, bb, pp); None starts fresh. ``pp`` only sets the scale
            of ``aa`` and ``bb`` and gets no gradient of its own.

    Returns:
        The output ``[batch, time, channels]`` and the final state, both float32.

    The fused kernel runs on CPU; on other devices the plain loop does.
    """
    if k.device.type != "cpu":
        return naive_wkv4(w.float(), u.float(), k.float(), v.float(), state)
    if state is None:
        state = empty_wkv_state(k.shape[0], k.shape[2], k.float().detach())
    result: tuple[Tensor, Tensor] = _wkv4_op(w.float(), u.float(), k.float(), v.float(), state)
    return result


def lif(x: Tensor, membrane: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run leaky integrate-and-fire neurons over ``x``, ``[batch, time, channels]``.

    ``h = v + (x - v) / 2``; a spike where ``h >= 1``; then ``v = h (1 - spike)``. The gradient uses
    the ATan surrogate (alpha 2) and goes through the reset.

    Returns:
        Spikes (0 or 1, float32, the shape of ``x``) and the final membrane ``[batch, channels]``.

    The fused kernel runs on CPU; on other devices the plain loop does.
    """
    if x.device.type != "cpu":
        return naive_lif(x.float(), membrane)
    if membrane is None:
        membrane = torch.zeros(x.shape[0], x.shape[2])
    result: tuple[Tensor, Tensor] = _lif_op(x.float(), membrane)
    return result


class _ATanStep(torch.autograd.Function):
    """Heaviside step forward (1 where ``z >= 0``), ``1 / (1 + (pi z)^2)`` backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        surrogate: Tensor = grad / (1 + (math.pi * z) ** 2)
        return surrogate


def atan_step(z: Tensor) -> Tensor:
    """Spike where ``z >= 0``, with the ATan surrogate gradient of alpha 2 (Fang et al. 2021)."""
    spikes: Tensor = _ATanStep.apply(z)
    return spikes


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
    step: Callable[[Tensor], Tensor] = atan_step,
) -> tuple[Tensor, Tensor]:
    """Do what ``lif`` does, token by token in plain torch; ``step`` turns ``h - 1`` into spikes."""
    v = x.new_zeros(x.shape[0], x.shape[2]) if membrane is None else membrane
    spikes = []
    for t in range(x.shape[1]):
        h = v + (x[:, t] - v) / 2
        spike = step(h - 1)
        v = h * (1 - spike)
        spikes.append(spike)
    return torch.stack(spikes, dim=1), v
