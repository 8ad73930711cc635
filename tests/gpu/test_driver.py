"""The emulated driver: memory, streams, graphs and its errors, as a device has them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu import emulator
from gpu.sample_kernels import Samples

HERE = Path(__file__).parent
ORDERS = pytest.mark.parametrize("order", emulator.ORDERS)
INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT = 1, 2, 100, 201
NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION, NOT_FOUND = 209, 218, 222, 500
ILLEGAL_ADDRESS, LAUNCH_FAILED, TOO_LARGE, CAPTURING, INVALIDATED = 700, 719, 720, 900, 901
MOST_DYNAMIC_SHARED = 8


class Gpu:
    """Calls of the driver with a context and a stream."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.ok("cuInit", 0)
        self.ok("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.ok("cuCtxSetCurrent", context)
        self.ok("cuStreamCreate", ctypes.byref(self.stream), 1)

    def call(self, name: str, *arguments: object) -> int:
        code: int = getattr(self.library, name)(*arguments)
        return code

    def ok(self, name: str, *arguments: object) -> None:
        assert self.call(name, *arguments) == 0, name

    def set(self, name: str, value: object) -> None:
        emulator.setting(self.library, name, value)

    def allocate(self, count: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self.ok("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(4 * count))
        return address

    def upload(self, values: np.ndarray) -> ctypes.c_uint64:
        address = self.allocate(values.size)
        self.ok("cuMemcpyHtoD_v2", address, ctypes.c_void_p(values.ctypes.data), values.nbytes)
        return address

    def download(self, address: ctypes.c_uint64, count: int) -> np.ndarray:
        values = np.zeros(count, np.float32)
        self.ok("cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), address, values.nbytes)
        return values

    def pinned(self, count: int) -> np.ndarray:
        host = ctypes.c_void_p()
        self.ok("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(4 * count), 0)
        assert host.value is not None
        return np.frombuffer((ctypes.c_float * count).from_address(host.value), np.float32)

    def load(self, ptx: str) -> tuple[int, str]:
        """Return the result and what the driver's compiler said."""
        log = ctypes.create_string_buffer(200)
        options = (ctypes.c_int * 2)(5, 6)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), 200)
        self.module = ctypes.c_void_p()
        code = self.call(
            "cuModuleLoadDataEx", ctypes.byref(self.module), ptx.encode(), 2, options, values
        )
        return code, log.value.decode()

    def kernel(self, name: str) -> ctypes.c_void_p:
        assert self.load(f".visible .entry {name}(") == (0, "")
        function = ctypes.c_void_p()
        self.ok("cuModuleGetFunction", ctypes.byref(function), self.module, name.encode())
        return function

    def launch(
        self,
        kernel: ctypes.c_void_p,
        x: ctypes.c_uint64,
        out: ctypes.c_uint64,
        count: int = 0,
        *,
        blocks: int = 1,
        threads: int = 64,
        shared: int = 0,
        cooperative: bool = False,
    ) -> int:
        params = Samples(x.value, out.value, count)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        name = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        extra = () if cooperative else (None,)
        return self.call(
            name, kernel, blocks, 1, 1, threads, 1, 1, shared, self.stream, arguments, *extra
        )


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    library = emulator.load(emulator.build(HERE / "samples.cu"))
    yield Gpu(library)
    names = "ORDER SMS MEMORY LOST_AFTER REFUSE_PTX DRIVER_VERSION CAPABILITY DEVICES STREAMS"
    for name in names.split():
        emulator.setting(library, name, None)
    library.cuCtxSetCurrent(None)


@ORDERS
def test_shared_memory_of_the_size_that_a_launch_says(gpu: Gpu, order: str) -> None:
    gpu.set("ORDER", order)
    values = np.arange(128, dtype=np.float32)
    kernel, x, out = gpu.kernel("reverse_block_64"), gpu.upload(values), gpu.allocate(128)
    assert gpu.launch(kernel, x, out, blocks=2, shared=256) == 0
    assert gpu.download(out, 128).tolist() == values.reshape(2, 64)[:, ::-1].ravel().tolist()
    # More than 48 kB is given on request, more than the device has is not.
    assert gpu.launch(kernel, x, out, blocks=2, shared=49153) == INVALID_VALUE
    gpu.ok("cuFuncSetAttribute", kernel, MOST_DYNAMIC_SHARED, 65536)
    assert gpu.launch(kernel, x, out, blocks=2, shared=49153) == 0
    assert gpu.call("cuFuncSetAttribute", kernel, MOST_DYNAMIC_SHARED, 232449) == INVALID_VALUE


@ORDERS
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_all_blocks_of_a_cooperative_launch_are_there(gpu: Gpu, order: str, blocks: int) -> None:
    gpu.set("ORDER", order)
    kernel = gpu.kernel("grid_sums_64")
    x = gpu.upload(np.ones(64 * blocks, np.float32))
    out = gpu.upload(np.zeros(1 + 2 * blocks, np.float32))
    assert gpu.launch(kernel, x, out, 3, blocks=blocks, cooperative=True) == 0
    found = gpu.download(out, 1 + 2 * blocks)
    assert found[0].view(np.uint32) == 3 * blocks
    assert (found[1 : 1 + blocks] == 64 * (64 * blocks) ** 2).all()
    assert (found[1 + blocks :] == 64 * 64 * blocks).all()


def test_a_barrier_over_the_grid_that_nobody_leaves_is_reported(gpu: Gpu) -> None:
    kernel, out = gpu.kernel("endless_grid_64"), gpu.upload(np.zeros(1, np.float32))
    assert gpu.launch(kernel, out, out, blocks=2, cooperative=True) == LAUNCH_FAILED
    assert gpu.library.simt_failure() == (
        b"endless_grid_64, block (1, 0, 0): 128 of 128 threads wait for ever at a barrier"
    )
    text = ctypes.c_char_p()
    gpu.ok("cuGetErrorString", LAUNCH_FAILED, ctypes.byref(text))
    assert text.value is not None
    assert text.value.startswith(b"unspecified launch failure: endless_grid_64")
    # Blocks of another launch are not there at the same time.
    zeros = gpu.upload(np.zeros(128, np.float32))
    assert gpu.launch(gpu.kernel("grid_sums_64"), zeros, zeros, 1, blocks=2) == LAUNCH_FAILED


def test_a_cooperative_launch_must_fit_the_device(gpu: Gpu) -> None:
    kernel, blocks = gpu.kernel("grid_sums_64"), ctypes.c_int()
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    gpu.ok(occupancy, ctypes.byref(blocks), kernel, 64, ctypes.c_size_t(40_000))
    assert blocks.value == 5
    x, out = gpu.upload(np.zeros(64, np.float32)), gpu.upload(np.zeros(1, np.float32))
    gpu.set("SMS", 2)
    assert gpu.launch(kernel, x, out, blocks=11, shared=40_000, cooperative=True) == TOO_LARGE
    assert gpu.launch(kernel, x, out, blocks=1, threads=65) == INVALID_VALUE


def test_integers(gpu: Gpu) -> None:
    out = gpu.upload(np.zeros(2, np.float32))
    assert gpu.launch(gpu.kernel("integers_32"), out, out, threads=32) == 0
    found = gpu.download(out, 2)
    assert found[0] == 5 - 2 * 127 * 128 - 4
    assert found[1].view(np.uint32) == 64


def test_memory_has_ends_and_a_limit_and_starts_as_nan(gpu: Gpu) -> None:
    before = gpu.library.simt_memory_in_use()
    gpu.set("MEMORY", before + 1000)
    address = gpu.allocate(100)
    assert np.isnan(gpu.download(address, 100)).all()
    assert address.value % 256 == 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    gpu.ok("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    assert (free.value, total.value) == (600, before + 1000)
    other = ctypes.c_uint64()
    assert gpu.call("cuMemAlloc_v2", ctypes.byref(other), ctypes.c_size_t(601)) == OUT_OF_MEMORY
    host = (ctypes.c_char * 404)()
    assert gpu.call("cuMemcpyHtoD_v2", address, host, ctypes.c_size_t(404)) == INVALID_VALUE
    gpu.ok("cuMemFree_v2", address)
    assert gpu.call("cuMemFree_v2", address) == INVALID_VALUE
    assert gpu.call("cuMemcpyHtoD_v2", address, host, ctypes.c_size_t(4)) == INVALID_VALUE
    assert gpu.library.simt_memory_in_use() == before


def test_lazy_streams_show_what_the_host_does_too_early(gpu: Gpu) -> None:
    gpu.set("STREAMS", "lazy")
    out, pinned, result = gpu.allocate(4), gpu.pinned(4), gpu.pinned(4)
    pinned[:], result[:] = 1, 0
    pageable = np.full(1, 7, np.float32)
    copy = "cuMemcpyHtoDAsync_v2"
    gpu.ok(copy, out, ctypes.c_void_p(pinned.ctypes.data), ctypes.c_size_t(16), gpu.stream)
    gpu.ok(copy, out, ctypes.c_void_p(pageable.ctypes.data), ctypes.c_size_t(4), gpu.stream)
    where = ctypes.c_void_p(result.ctypes.data)
    gpu.ok("cuMemcpyDtoHAsync_v2", where, out, ctypes.c_size_t(16), gpu.stream)
    pinned[:], pageable[:] = 2, 2
    assert result.tolist() == [0, 0, 0, 0]
    gpu.ok("cuStreamSynchronize", gpu.stream)
    assert result.tolist() == [7, 2, 2, 2]
    # A kernel's failure is told when somebody waits.
    gpu.ok("cuMemsetD8Async", out, 0, ctypes.c_size_t(16), gpu.stream)
    assert gpu.launch(gpu.kernel("endless_grid_64"), out, out) == 0
    assert gpu.call("cuStreamSynchronize", gpu.stream) == LAUNCH_FAILED
    assert gpu.call("cuStreamSynchronize", gpu.stream) == 0


@pytest.mark.parametrize("streams", ["eager", "lazy"])
def test_a_graph_repeats_what_was_captured(gpu: Gpu, streams: str) -> None:
    gpu.set("STREAMS", streams)
    kernel, pinned = gpu.kernel("block_sum_64"), gpu.pinned(64)
    x, out = gpu.allocate(64), gpu.upload(np.zeros(2, np.float32))
    pinned[:] = 1
    second = ctypes.c_uint64(out.value + 4)
    gpu.ok("cuStreamBeginCapture_v2", gpu.stream, 1)
    where = ctypes.c_void_p(pinned.ctypes.data)
    gpu.ok("cuMemcpyHtoDAsync_v2", x, where, ctypes.c_size_t(256), gpu.stream)
    assert gpu.launch(kernel, x, out) == 0
    gpu.ok("cuMemcpyDtoDAsync_v2", second, out, ctypes.c_size_t(4), gpu.stream)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    gpu.ok("cuStreamEndCapture", gpu.stream, ctypes.byref(graph))
    gpu.ok("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
    gpu.ok("cuGraphDestroy", graph)
    assert gpu.download(out, 2).tolist() == [0, 0]
    for value in (1, 3):
        pinned[:] = value
        gpu.ok("cuGraphLaunch", executable, gpu.stream)
        assert gpu.download(out, 2).tolist() == [64 * value] * 2
    gpu.ok("cuGraphExecDestroy", executable)


def test_what_cannot_be_captured_spoils_the_capture(gpu: Gpu) -> None:
    address, graph = ctypes.c_uint64(), ctypes.c_void_p()
    gpu.ok("cuStreamBeginCapture_v2", gpu.stream, 1)
    assert gpu.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(4)) == CAPTURING
    assert gpu.call("cuStreamEndCapture", gpu.stream, ctypes.byref(graph)) == INVALIDATED
    assert graph.value is None
    gpu.ok("cuStreamSynchronize", gpu.stream)


def test_a_lost_device_answers_with_an_error_until_it_is_replaced(gpu: Gpu) -> None:
    kernel, x, out = gpu.kernel("block_sum_64"), gpu.allocate(64), gpu.allocate(1)
    gpu.set("LOST_AFTER", 2)
    codes = [gpu.launch(kernel, x, out) for _ in range(4)]
    assert codes == [0, 0, ILLEGAL_ADDRESS, ILLEGAL_ADDRESS]
    assert gpu.call("cuMemFree_v2", out) == ILLEGAL_ADDRESS
    assert gpu.call("cuStreamSynchronize", gpu.stream) == ILLEGAL_ADDRESS
    gpu.set("LOST_AFTER", None)
    assert gpu.launch(kernel, x, out) == 0


def test_ptx_that_a_device_cannot_run_is_refused(gpu: Gpu) -> None:
    ptx = ".version 8.0\n.target sm_90\n.visible .entry block_sum_64("
    assert gpu.load(ptx) == (0, "")
    gpu.set("CAPABILITY", "8.9")
    code, said = gpu.load(ptx)
    assert code == NO_BINARY_FOR_GPU
    assert "target" in said
    assert gpu.load(ptx.replace("90", "80"))[0] == 0
    gpu.set("CAPABILITY", None)
    gpu.set("DRIVER_VERSION", 11080)
    code, said = gpu.load(ptx)
    assert (code, said) == (UNSUPPORTED_PTX_VERSION, "ptxas fatal: Unsupported .version 8.0")
    gpu.set("DRIVER_VERSION", None)
    gpu.set("REFUSE_PTX", 1)
    assert gpu.load(ptx)[0] == INVALID_PTX


def test_devices_can_be_hidden_and_contexts_are_needed(gpu: Gpu) -> None:
    gpu.ok("cuCtxSetCurrent", None)
    address = ctypes.c_uint64()
    code = gpu.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(4))
    assert code == INVALID_CONTEXT
    gpu.set("DEVICES", 0)
    assert gpu.call("cuInit", 0) == NO_DEVICE
    gpu.set("DEVICES", 3)
    count, device = ctypes.c_int(), ctypes.c_int()
    gpu.ok("cuDeviceGetCount", ctypes.byref(count))
    assert count.value == 3
    assert gpu.call("cuDeviceGet", ctypes.byref(device), 3) == 101
