"""The engine's kernels on CPU tensors: float32, contiguous, on torch's own memory.

``ops/operators.py`` gives them to autograd. A kernel for another device is a module with the same
functions; results are new tensors, and inputs may be of any stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikelet import _spikelet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

DTYPES = (torch.float32,)
"""Types of k, v and of the input of neurons that kernels read."""


def _array(tensor: Tensor) -> np.ndarray:
    """Show a CPU float32 tensor as an array, on the same memory where it is contiguous."""
    return tensor.detach().contiguous().numpy()


def _bits(tensor: Tensor) -> np.ndarray:
    """Show a tensor as an array on the same memory; bfloat16, which NumPy lacks, as uint16."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _threads() -> int:
    return torch.get_num_threads()


def wkv4_forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``y`` ``[batch, time, channels]`` and the state after it ``[batch, 3, channels]``."""
    y, state_out = torch.empty(k.shape), torch.empty(state.shape)
    _spikelet.wkv4_forward(
        _array(w), _array(u), _array(k), _array(v), y.numpy(),
        state=_array(state), state_out=state_out.numpy(), threads=_threads(),
    )  # fmt: skip
    return y, state_out


def wkv4_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of w, u, k, v and state."""
    gw, gu = torch.empty(w.shape), torch.empty(u.shape)
    gk, gv, gstate = torch.empty(k.shape), torch.empty(v.shape), torch.empty(state.shape)
    _spikelet.wkv4_backward(
        _array(w), _array(u), _array(k), _array(v), _array(gy),
        gw.numpy(), gu.numpy(), gk.numpy(), gv.numpy(),
        state=_array(state), gstate_out=_array(gstate_out), gstate=gstate.numpy(),
        threads=_threads(),
    )  # fmt: skip
    return gw, gu, gk, gv, gstate


def lif_forward(x: Tensor, membrane: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return spikes ``[batch, time, channels]`` and the membrane after them."""
    spikes, membrane_out = torch.empty(x.shape), torch.empty(membrane.shape)
    _spikelet.lif_forward(
        _array(x), spikes.numpy(),
        membrane=_array(membrane), decay=None if decay is None else _array(decay),
        membrane_out=membrane_out.numpy(), threads=_threads(),
    )  # fmt: skip
    return spikes, membrane_out


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
    gx, gmembrane = torch.empty(x.shape), torch.empty(membrane.shape)
    gdecay = torch.empty(0 if decay is None else x.shape[2])
    _spikelet.lif_backward(
        _array(x), _array(gspikes), gx.numpy(), surrogate=surrogate, alpha=alpha,
        membrane=_array(membrane), decay=None if decay is None else _array(decay),
        gmembrane_out=_array(gmembrane_out), gmembrane=gmembrane.numpy(),
        gdecay=None if decay is None else gdecay.numpy(), threads=_threads(),
    )  # fmt: skip
    return gx, gmembrane, gdecay


def mix_forward(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return one ``[batch, time, channels]`` of ``dtype`` (float32 or bfloat16) per mix."""
    out = [torch.empty(x.shape, dtype=dtype) for _ in mixes]
    _spikelet.mix_forward(
        _array(x), _array(last), [_array(mix) for mix in mixes], [_bits(one) for one in out],
        threads=_threads(),
    )  # fmt: skip
    return out


def mix_backward(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], gout: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, last and all mixes together, ``[mixes, channels]``."""
    gx, glast = torch.empty(x.shape), torch.empty(last.shape)
    gmixes = torch.empty(len(mixes), x.shape[2])
    _spikelet.mix_backward(
        _array(x), _array(last), [_array(mix) for mix in mixes], [_bits(one) for one in gout],
        gx.numpy(), glast.numpy(), gmixes.numpy(), threads=_threads(),
    )  # fmt: skip
    return gx, glast, gmixes


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid of a vector with the bits that the engine computes."""
    y = torch.empty(x.shape)
    _spikelet.sigmoid(_array(x), y.numpy())
    return y
