"""The kernels of an NVIDIA GPU: the functions of ``ops/cpu.py`` on CUDA tensors.

``available()`` says whether they can run here and ``reason()`` why not. Every function checks
shapes, types and devices of what it is given before anything is launched, and returns new tensors;
kernels run on PyTorch's current stream. What comes from matrix products may be bfloat16, all else
is float32. Sums over rows are in a fixed order, so results have the same bits in every run.

The kernels are kernels/train.cu; each struct here has the layout of the struct of that name there.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikelet.training.errors import TrainingError
from spikelet.training.ops.cuda_driver import Runtime, open_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

# Constants of the same names in kernels/train/.
WALKERS = 32
CHUNK = 16
MIXES = 3
MIX_THREADS = 128
MIX_TILE = 64
SUM_COLUMNS, SUM_LANES = 32, 8
SURROGATES = ("atan", "sigmoid", "fast_sigmoid")
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
DTYPES = tuple(SUFFIXES)
"""Types of k, v and of the input of neurons that kernels read."""
LARGEST_GRID_Y = 65535


@functools.cache
def _opened() -> Runtime | str:
    return open_runtime()


def _runtime() -> Runtime:
    runtime = _opened()
    if isinstance(runtime, str):
        raise TrainingError(f"CUDA operators cannot run: {runtime}")
    return runtime


def available() -> bool:
    """Whether the kernels can run in this process."""
    return not isinstance(_opened(), str)


def reason() -> str | None:
    """Say why the kernels cannot run; None where they can."""
    runtime = _opened()
    return runtime if isinstance(runtime, str) else None


def _struct(name: str, pointers: str, *rest: tuple[str, type]) -> type[ctypes.Structure]:
    fields: list[tuple[str, object]] = []
    for pointer in pointers.split():
        field, _, count = pointer.partition(":")
        fields.append((field, ctypes.c_void_p * int(count) if count else ctypes.c_void_p))
    dims = [(dim, ctypes.c_uint32) for dim in ("batch", "time", "channels")]
    fields += [*([] if name == "SumRows" else dims), *rest]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_U32 = ctypes.c_uint32
Wkv4Forward = _struct("Wkv4Forward", "w u k v state y state_out")
Wkv4Backward = _struct("Wkv4Backward", "w u k v state gy gstate_out workspace gw gu gk gv gstate")
LifForward = _struct("LifForward", "x membrane decay spikes membrane_out")
LifBackward = _struct(
    "LifBackward",
    "x membrane decay gspikes gmembrane_out workspace gx gmembrane gdecay",
    ("surrogate", _U32),
    ("alpha", ctypes.c_float),
)
MixForward = _struct("MixForward", f"x last mix:{MIXES} out:{MIXES}", ("count", _U32))
MixBackward = _struct(
    "MixBackward", f"x last mix:{MIXES} gout:{MIXES} gx glast gmixes", ("count", _U32)
)
SumRows = _struct("SumRows", "in_ out", ("rows", _U32), ("columns", _U32))


class _Call:
    """Checks the tensors of one operator against the sizes of its first, then launches."""

    def __init__(self, op: str, like: Tensor) -> None:
        """Take sizes and device from `like`, `[batch, time, channels]`."""
        self.op = op
        self.runtime = _runtime()
        if like.ndim != 3 or like.numel() == 0:
            raise ValueError(
                f"{op}: a tensor is {list(like.shape)}, [batch, time, channels] is needed, none 0"
            )
        if like.device.type != self.runtime.device_type:
            raise ValueError(f"{op}: a tensor is on {like.device}, a GPU is needed")
        self.device = like.device
        self.dims = tuple(like.shape)
        self.batch, self.time, self.channels = self.dims
        if self.batch * self.channels >= 2**31 or self.time >= 2**31:
            raise ValueError(f"{op}: {list(self.dims)} is too large for the kernels")
        self.token = self.dims
        self.row = (self.batch, self.channels)
        self.channel = (self.channels,)
        self.state = (self.batch, 3, self.channels)
        self.chunks = -(-self.time // CHUNK)
        self.walk_grid = (-(-self.batch * self.channels // WALKERS), 1)

    def check(
        self, name: str, tensor: Tensor, shape: tuple[int, ...],
        dtypes: Sequence[torch.dtype] = (torch.float32,),
    ) -> Tensor:  # fmt: skip
        """Return `tensor`, contiguous, if it is what the kernel reads."""
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{self.op}: {name} is {list(tensor.shape)}, {list(shape)} is needed")
        if tensor.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{self.op}: {name} is {tensor.dtype}, {wanted} is needed")
        if tensor.device != self.device:
            raise ValueError(
                f"{self.op}: {name} is on {tensor.device}, the others are on {self.device}"
            )
        return tensor.detach().contiguous()

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory on the device, unwritten."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, params: ctypes.Structure
    ) -> None:
        """Start a kernel."""
        if grid[1] > LARGEST_GRID_Y:
            raise ValueError(f"{self.op}: {self.time} tokens are too many for the kernel {kernel}")
        self.runtime.launch(f"spk_{kernel}", grid, threads, params, self.device)

    def sum_rows(self, rows: Tensor) -> Tensor:
        """Sum `[groups, rows, channels]` over rows."""
        groups, count, columns = rows.shape
        out = self.new(groups, columns)
        params = SumRows(rows.data_ptr(), out.data_ptr(), count, columns)
        grid = (-(-columns // SUM_COLUMNS), groups)
        self.launch("sum_rows_f32", grid, SUM_COLUMNS * SUM_LANES, params)
        return out


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _pointer_array(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * MIXES)(*_pointers(*tensors))


def wkv4_forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y and the state after it, float32; k and v are both float32 or both bfloat16."""
    call = _Call("wkv4_forward", k)
    k = call.check("k", k, call.token, DTYPES)
    v = call.check("v", v, call.token, (k.dtype,))
    w, u = call.check("w", w, call.channel), call.check("u", u, call.channel)
    state = call.check("state", state, call.state)
    y, state_out = call.new(*call.token), call.new(*call.state)
    params = Wkv4Forward(*_pointers(w, u, k, v, state, y, state_out), *call.dims)
    call.launch(f"wkv4_forward_{SUFFIXES[k.dtype]}", call.walk_grid, WALKERS, params)
    return y, state_out


def wkv4_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, gy: Tensor, gstate_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of w, u, k, v and state, those of k and v in their type.

    Nothing but the inputs is kept from the forward pass: states are recomputed from every 16th, in
    a workspace of 3/16 of a float32 tensor like k.
    """
    call = _Call("wkv4_backward", k)
    k = call.check("k", k, call.token, DTYPES)
    v = call.check("v", v, call.token, (k.dtype,))
    w, u = call.check("w", w, call.channel), call.check("u", u, call.channel)
    state = call.check("state", state, call.state)
    gy = call.check("gy", gy, call.token)
    gstate_out = call.check("gstate_out", gstate_out, call.state)
    workspace = call.new(call.chunks, 3, *call.row)
    gw, gu = call.new(1, *call.row), call.new(1, *call.row)
    gk, gv = (call.new(*call.token, dtype=k.dtype) for _ in "kv")
    gstate = call.new(*call.state)
    inputs = _pointers(w, u, k, v, state, gy, gstate_out, workspace)
    params = Wkv4Backward(*inputs, *_pointers(gw, gu, gk, gv, gstate), *call.dims)
    call.launch(f"wkv4_backward_{SUFFIXES[k.dtype]}", call.walk_grid, WALKERS, params)
    return call.sum_rows(gw)[0], call.sum_rows(gu)[0], gk, gv, gstate


def lif_forward(x: Tensor, membrane: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return spikes and the membrane after them, float32; x is float32 or bfloat16."""
    call = _Call("lif_forward", x)
    x = call.check("x", x, call.token, DTYPES)
    membrane = call.check("membrane", membrane, call.row)
    decay = None if decay is None else call.check("decay", decay, call.channel)
    spikes, membrane_out = call.new(*call.token), call.new(*call.row)
    params = LifForward(*_pointers(x, membrane, decay, spikes, membrane_out), *call.dims)
    call.launch(f"lif_forward_{SUFFIXES[x.dtype]}", call.walk_grid, WALKERS, params)
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
    """Return the gradients of x, in its type, of membrane, and of decay, empty without one."""
    call = _Call("lif_backward", x)
    if surrogate not in SURROGATES:
        known = ", ".join(SURROGATES)
        raise ValueError(f"lif_backward: surrogate is {surrogate!r}, known are {known}")
    x = call.check("x", x, call.token, DTYPES)
    membrane = call.check("membrane", membrane, call.row)
    decay = None if decay is None else call.check("decay", decay, call.channel)
    gspikes = call.check("gspikes", gspikes, call.token)
    gmembrane_out = call.check("gmembrane_out", gmembrane_out, call.row)
    workspace = call.new(call.chunks, *call.row)
    gx, gmembrane = call.new(*call.token, dtype=x.dtype), call.new(*call.row)
    gdecay = None if decay is None else call.new(1, *call.row)
    tensors = (x, membrane, decay, gspikes, gmembrane_out, workspace, gx, gmembrane, gdecay)
    kind = SURROGATES.index(surrogate)
    params = LifBackward(*_pointers(*tensors), *call.dims, kind, alpha)
    call.launch(f"lif_backward_{SUFFIXES[x.dtype]}", call.walk_grid, WALKERS, params)
    return gx, gmembrane, call.new(0) if gdecay is None else call.sum_rows(gdecay)[0]


def _mix_grid(call: _Call) -> tuple[int, int]:
    return -(-call.batch * call.channels // MIX_THREADS), -(-call.time // MIX_TILE)


def _checked_mixes(
    call: _Call, x: Tensor, last: Tensor, mixes: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    if not 1 <= len(mixes) <= MIXES:
        raise ValueError(f"{call.op}: {len(mixes)} mixes, 1 to {MIXES} are needed")
    checked = [call.check(f"mixes[{j}]", mix, call.channel) for j, mix in enumerate(mixes)]
    return call.check("x", x, call.token), call.check("last", last, call.row), checked


def mix_forward(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return one ``[batch, time, channels]`` of ``dtype`` (float32 or bfloat16) per mix."""
    call = _Call("mix_forward", x)
    if dtype not in SUFFIXES:
        raise ValueError(f"mix_forward: dtype is {dtype}, float32 or bfloat16 is needed")
    x, last, mixes = _checked_mixes(call, x, last, mixes)
    out = [call.new(*call.token, dtype=dtype) for _ in mixes]
    arrays = _pointer_array(mixes), _pointer_array(out)
    params = MixForward(*_pointers(x, last), *arrays, *call.dims, len(mixes))
    call.launch(f"mix_forward_{SUFFIXES[dtype]}", _mix_grid(call), MIX_THREADS, params)
    return out


def mix_backward(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], gout: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, last and all mixes together, ``[mixes, channels]``."""
    call = _Call("mix_backward", x)
    x, last, mixes = _checked_mixes(call, x, last, mixes)
    if len(gout) != len(mixes):
        raise ValueError(f"mix_backward: {len(gout)} gradients for {len(mixes)} mixes")
    dtypes = DTYPES if len({g.dtype for g in gout}) == 1 else (torch.float32,)
    gout = [call.check(f"gout[{j}]", g, call.token, dtypes) for j, g in enumerate(gout)]
    grid = _mix_grid(call)
    gx, glast = call.new(*call.token), call.new(*call.row)
    partial = call.new(len(mixes), call.batch * grid[1], call.channels)
    arrays = _pointer_array(mixes), _pointer_array(gout)
    tensors = _pointers(gx, glast, partial)
    params = MixBackward(*_pointers(x, last), *arrays, *tensors, *call.dims, len(mixes))
    call.launch(f"mix_backward_{SUFFIXES[gout[0].dtype]}", grid, MIX_THREADS, params)
    return gx, glast, call.sum_rows(partial)
