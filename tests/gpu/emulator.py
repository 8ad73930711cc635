"""Kernels on the CPU (kernels/simt), opened as if they were a CUDA driver."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import emulated_cuda

if TYPE_CHECKING:
    from spikelet.training.ops import cuda_driver

KERNELS = emulated_cuda.KERNELS
ORDERS = ("forward", "reverse", "shuffled")


def build(*sources: Path, sanitize: bool = False, private: bool = True) -> Path:
    """Build all kernels, or those of `sources`; the test that asks is skipped without g++.

    A library that is not private is found by all of the process that ask for the driver.
    """
    try:
        emulated_cuda.compiler()
    except emulated_cuda.BuildError as error:
        pytest.skip(f"kernels cannot run on the CPU: {error}")
    return emulated_cuda.build(list(sources) or None, sanitize=sanitize, private=private)


def sanitizer() -> str:
    """AddressSanitizer's library, to be loaded first; the test that asks is skipped without it."""
    build()
    found = emulated_cuda.sanitizer()
    if found is None:
        pytest.skip("the C++ compiler has no AddressSanitizer")
    return str(found)


def load(library: Path) -> ctypes.CDLL:
    """Open it."""
    found = ctypes.CDLL(str(library))
    found.simt_failure.restype = ctypes.c_char_p
    found.simt_params_size.restype = ctypes.c_size_t
    found.simt_memory_in_use.restype = ctypes.c_size_t
    return found


def all_kernels() -> ctypes.CDLL:
    """Open kernels/*.cu; a run with sanitizers brings its own."""
    ready = os.environ.get("SPIKELET_TEST_SIMT")
    return load(Path(ready) if ready else build())


def set_order(library: ctypes.CDLL, order: str) -> None:
    """Choose in which order threads run from now on."""
    library.simt_set_order(ORDERS.index(order))


def setting(library: ctypes.CDLL, name: str, value: object) -> None:
    """Change what the emulated driver does, until None takes it back."""
    library.simt_set(f"SIMT_{name}".encode(), None if value is None else str(value).encode())


def runtime(library: ctypes.CDLL) -> cuda_driver.Runtime:
    """Make what CUDA operators launch on, for CPU tensors."""
    from spikelet.training.ops import cuda_driver

    return cuda_driver.Runtime(
        cuda_driver.Driver(library),
        device_type="cpu",
        capability=lambda device: (9, 0),
        stream=lambda device: 0,
    )
