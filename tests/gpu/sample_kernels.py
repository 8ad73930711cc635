"""Launches one kernel of samples.cu; as a program, for a build with sanitizers.

python sample_kernels.py LIBRARY KERNEL COUNT
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np


class Samples(ctypes.Structure):
    _fields_ = (("inputs", ctypes.c_void_p), ("out", ctypes.c_void_p), ("count", ctypes.c_uint32))


def launch(
    library: ctypes.CDLL, name: str, x: np.ndarray, out: np.ndarray, count: int, blocks: int = 1
) -> str | None:
    """Run a kernel, whose name ends in the size of its block; return what went wrong."""
    library.simt_failure.restype = ctypes.c_char_p
    context = ctypes.c_void_p()
    assert library.cuInit(0) == 0
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert library.cuCtxSetCurrent(context) == 0
    ptx = f".visible .entry {name}(".encode()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.cuModuleLoadDataEx(ctypes.byref(module), ptx, 0, None, None) == 0
    assert library.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0
    params = Samples(x.ctypes.data, out.ctypes.data, count)
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    threads = int(name.rpartition("_")[2])
    code = library.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, None, arguments, None)
    failure: str = library.simt_failure().decode()
    assert (code == 0) == (failure == "")
    return failure or None


if __name__ == "__main__":
    numbers = np.ones(64, np.float32)
    launch(ctypes.CDLL(sys.argv[1]), sys.argv[2], numbers, numbers.copy(), int(sys.argv[3]))
