"""Builds kernels for the CPU (kernels/simt) and opens them as if they were a CUDA driver."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from spikelet.training.ops import cuda_driver

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
ORDERS = ("forward", "reverse", "shuffled")


def compiler() -> str:
    """The C++ compiler; the test that asks is skipped where there is none."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("no C++ compiler: kernels cannot run on the CPU")
    return found


def sanitizer() -> str:
    """AddressSanitizer's library, to be loaded first; the test that asks is skipped without it."""
    command = [compiler(), "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("the C++ compiler has no AddressSanitizer")
    return found


def build(source: Path, library: Path, *options: str) -> Path:
    """Compile a .cu file, the emulator and its driver into a shared library."""
    command = [
        compiler(), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-shared", "-DSPIKELET_SIMT",
        f"-I{KERNELS}", *options, "-x", "c++", str(source), str(KERNELS / "simt/simt.cpp"),
        str(KERNELS / "simt/driver.cpp"), "-o", str(library),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def load(library: Path) -> ctypes.CDLL:
    """Open it."""
    found = ctypes.CDLL(str(library))
    found.simt_failure.restype = ctypes.c_char_p
    return found


def train_library(factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Return kernels/train.cu, built once a session; a run with sanitizers brings its own."""
    ready = os.environ.get("SPIKELET_TEST_SIMT")
    if ready:
        return load(Path(ready))
    path = factory.getbasetemp() / "simt_train.so"
    return load(path if path.exists() else build(KERNELS / "train.cu", path))


def set_order(library: ctypes.CDLL, order: str) -> None:
    """Choose in which order threads run from now on."""
    library.simt_set_order(ORDERS.index(order))


def runtime(library: ctypes.CDLL) -> cuda_driver.Runtime:
    """Make what CUDA operators launch on, for CPU tensors."""
    from spikelet.training.ops import cuda_driver

    return cuda_driver.Runtime(
        cuda_driver.Driver(library),
        device_type="cpu",
        capability=lambda device: (9, 0),
        stream=lambda device: 0,
    )
