"""The CUDA driver through ctypes: load PTX, find kernels, launch them on PyTorch's streams.

Nothing but the driver itself is needed, and nothing is loaded before it is asked for. PyTorch and
this module share the device's primary context, so tensors and streams are simply the same.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import torch

from spikelet.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLDEST_CAPABILITY = (8, 0)
LOG_BYTES = 8192
# Names in cuda.h: CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES.
ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_BYTES = 5, 6


class CudaError(TrainingError):
    """A call of the CUDA driver failed; the message names the call and what the driver says."""


def ptx_for(module: str, capability: tuple[int, int]) -> bytes:
    """Return a module's PTX for the newest target that a device of `capability` runs."""
    target = "compute_90" if capability >= (9, 0) else "compute_80"
    return (resources.files("spikelet") / "ptx" / f"{module}.{target}.ptx").read_bytes()


class Driver:
    """The calls of libcuda that are needed, with errors as exceptions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Use `library`, which has been opened already."""
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._lock = threading.Lock()
        self._call("cuInit", 0)

    def _call(
        self, name: str, *arguments: object, log: ctypes.Array[ctypes.c_char] | None = None
    ) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
        said = log.value.decode(errors="replace").strip() if log is not None else ""
        reason = f"{text.value.decode() if known and text.value else 'unknown error'} ({code})"
        raise CudaError(f"{name}: {reason}{': ' if said else ''}{said}")

    @contextmanager
    def context(self, ordinal: int) -> Iterator[None]:
        """Make the primary context of a device current in this thread, for a while."""
        with self._lock:
            if ordinal not in self._contexts:
                device, context = ctypes.c_int(), ctypes.c_void_p()
                self._call("cuDeviceGet", ctypes.byref(device), ordinal)
                # Kept for good, as PyTorch does: the reference costs nothing.
                self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
                self._contexts[ordinal] = context
        self._call("cuCtxPushCurrent_v2", self._contexts[ordinal])
        try:
            yield
        finally:
            self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def load(self, ptx: bytes) -> ctypes.c_void_p:
        """Compile PTX for the current context's device."""
        log = ctypes.create_string_buffer(LOG_BYTES)
        options = (ctypes.c_int * 2)(ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        module = ctypes.c_void_p()
        self._call(
            "cuModuleLoadDataEx", ctypes.byref(module), ctypes.c_char_p(ptx), 2, options, values,
            log=log,
        )  # fmt: skip
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """Find a kernel."""
        found = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return found

    def launch(
        self,
        function: ctypes.c_void_p,
        grid: tuple[int, int],
        threads: int,
        params: ctypes.Structure,
        stream: int,
    ) -> None:
        """Start a kernel; the driver copies `params` before it returns."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        self._call(
            "cuLaunchKernel", function, *(ctypes.c_uint(n) for n in (*grid, 1, threads, 1, 1, 0)),
            ctypes.c_void_p(stream), arguments, None,
        )  # fmt: skip


@dataclass
class Runtime:
    """A driver and how to ask PyTorch about the devices it drives."""

    driver: Driver
    device_type: str
    capability: Callable[[torch.device], tuple[int, int]]
    stream: Callable[[torch.device], int]
    _functions: dict[tuple[int, str], ctypes.c_void_p] = field(default_factory=dict)
    _modules: dict[tuple[int, str], ctypes.c_void_p] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def function(
        self, ordinal: int, module: str, name: str, device: torch.device
    ) -> ctypes.c_void_p:
        """Find a kernel of a module, which is compiled for the device the first time."""
        with self._lock:
            if (ordinal, module) not in self._modules:
                ptx = ptx_for(module, self.capability(device))
                self._modules[ordinal, module] = self.driver.load(ptx)
            if (ordinal, name) not in self._functions:
                self._functions[ordinal, name] = self.driver.function(
                    self._modules[ordinal, module], name
                )
            return self._functions[ordinal, name]

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, params: ctypes.Structure,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Start a kernel of module `train` on the current stream of `device`."""
        ordinal = device.index or 0
        with self.driver.context(ordinal):
            function = self.function(ordinal, "train", name, device)
            self.driver.launch(function, grid, threads, params, self.stream(device))


def open_runtime() -> Runtime | str:
    """Find the driver and PyTorch's devices, or say why kernels cannot run here.

    Quiet where there is no driver: PyTorch is asked about devices only after libcuda was found.
    """
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver: libcuda.so.1 was not found"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device (torch.cuda.is_available() is false)"
    too_old = [
        f"{torch.cuda.get_device_name(i)} has compute capability {major}.{minor}"
        for i in range(torch.cuda.device_count())
        for major, minor in [torch.cuda.get_device_capability(i)]
        if (major, minor) < OLDEST_CAPABILITY
    ]
    if too_old:
        return f"{too_old[0]}, and the kernels need 8.0 or later"
    try:
        driver = Driver(library)
        runtime = Runtime(
            driver,
            device_type="cuda",
            capability=torch.cuda.get_device_capability,
            stream=lambda device: int(torch.cuda.current_stream(device).cuda_stream),
        )
        ordinal = torch.cuda.current_device()
        with driver.context(ordinal):
            # Loads the module, so that a driver older than the PTX is found out now.
            runtime.function(ordinal, "train", "spk_sum_rows_f32", torch.device("cuda", ordinal))
    except CudaError as error:
        return f"the kernels do not load: {error}; driver 525 or later is needed"
    return runtime
