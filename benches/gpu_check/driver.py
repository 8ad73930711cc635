"""The few calls of libcuda that probes need, through ctypes: launches, graphs, memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

STREAM_NON_BLOCKING = 1
CAPTURE_RELAXED = 2
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR, L2_BYTES = 16, 75, 76, 38
"""Of CUdevice_attribute."""


class DriverError(RuntimeError):
    """A call failed; the message names it."""


class Driver:
    """The first device's primary context, and a stream."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.call("cuInit", 0)
        self.device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxPushCurrent_v2", context)
        self.stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(self.stream), STREAM_NON_BLOCKING)

    def call(self, name: str, *arguments: object) -> None:
        """Call the driver."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise DriverError(f"{name}: error {code} of the CUDA driver")

    def attribute(self, which: int) -> int:
        """Return what the device is like."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self.device)
        return value.value

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def module(self, ptx: bytes) -> ctypes.c_void_p:
        """Compile PTX."""
        module = ctypes.c_void_p()
        text = ctypes.c_char_p(ptx)
        self.call("cuModuleLoadDataEx", ctypes.byref(module), text, 0, None, None)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """Find a kernel."""
        found = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return found

    def allocate(self, size: int) -> int:
        """Return the address of memory; the process ends with it."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self.call("cuMemsetD8Async", address, 0, ctypes.c_size_t(size), self.stream)
        self.synchronise()
        return address.value

    def synchronise(self) -> None:
        """Wait for all that was begun."""
        self.call("cuStreamSynchronize", self.stream)

    def launch(
        self, function: ctypes.c_void_p, blocks: int, threads: int, params: ctypes.Structure,
        *, cooperative: bool = False, stream: ctypes.c_void_p | None = None,
    ) -> None:  # fmt: skip
        """Start a kernel."""
        sizes = [ctypes.c_uint(n) for n in (blocks, 1, 1, threads, 1, 1, 0)]
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        name = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        more = [] if cooperative else [None]
        self.call(name, function, *sizes, stream or self.stream, arguments, *more)

    def graph(self, record: Callable[[ctypes.c_void_p], None]) -> ctypes.c_void_p:
        """Return what `record` launches on the stream that it is given, as a graph."""
        stream, graph, made = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), STREAM_NON_BLOCKING)
        self.call("cuStreamBeginCapture_v2", stream, CAPTURE_RELAXED)
        record(stream)
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        none = ctypes.c_ulonglong(0)
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, none)
        return made

    def launch_graph(self, graph: ctypes.c_void_p) -> None:
        """Start a graph."""
        self.call("cuGraphLaunch", graph, self.stream)
