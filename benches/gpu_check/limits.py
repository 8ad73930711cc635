"""Part `limits`: what the card gives, whatever runs on it; the other figures are shares of this.

Memory is read and never written; multiply-adds of floats and dot products of bytes are those that
exact kernels are made of; a launch is an empty kernel, by itself and in a graph; a barrier is one
over all blocks of a cooperative launch.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from harness import Figure

from gpu_check import driver
from gpu_check.child import DRIVER, ROOT, Context
from gpu_check.driver import Driver
from gpu_check.record import Put, Unit

SOURCE = Path(__file__).with_name("probes.cu")
THREADS, CHAINS = 256, 8
"""Constants of the same names in probes.cu."""
READ, FMA = "read GB/s", "multiply-add GFLOP/s"
DOT, TENSOR = "int8 dot GOP/s", "int8 tensor GOP/s"
LAUNCH, IN_GRAPH, GRAPH, BARRIER = "launch us", "kernel in a graph us", "graph us", "barrier us"


def struct(name: str, *fields: tuple[str, type]) -> type[ctypes.Structure]:
    """Make a kernel's parameters."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


P, U32, U64 = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64
Fill = struct("Fill", ("to", P), ("count", U64))
Read = struct("Read", ("from_", P), ("count", U64), ("to", P))
Nothing = struct("Nothing", ("to", P))
Work = struct("Work", ("to", P), ("rounds", U32), ("factor", ctypes.c_float))
Barrier = struct("Barrier", ("counter", P), ("rounds", U32))


def compiled(capability: int) -> bytes:
    """Return the probes' PTX, by the nvcc of this machine."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    target = 90 if capability >= 90 else 80
    command = [nvcc, "-ptx", f"-arch=compute_{target}", "--std=c++17", f"-I{ROOT / 'kernels'}"]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "probes.ptx"
        command += ["-o", str(made), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            raise RuntimeError("nvcc is not on this machine, and the probes need it") from None
        if done.returncode:
            raise RuntimeError(f"nvcc: {done.stderr.decode(errors='replace')[-1500:]}")
        return made.read_bytes()


def names_only() -> bytes:
    """Return what the emulated driver wants to see: it has the kernels themselves."""
    names = re.findall(r"^KERNEL\((\w+),", SOURCE.read_text(), re.MULTILINE)
    entries = "".join(f".visible .entry {name}(\n" for name in names)
    return f"\n.version 8.0\n.target sm_80\n{entries}".encode()


class Probes:
    """The kernels of probes.cu."""

    def __init__(self, context: Context) -> None:
        self.dry = context.dry
        emulated = os.environ.get(DRIVER)
        self.driver = Driver(ctypes.CDLL(emulated or "libcuda.so.1"))
        self.blocks = self.driver.attribute(driver.MULTIPROCESSORS)
        major = self.driver.attribute(driver.CAPABILITY_MAJOR)
        minor = self.driver.attribute(driver.CAPABILITY_MINOR)
        ptx = names_only() if emulated else compiled(10 * major + minor)
        self.module = self.driver.module(ptx)
        self.spare = self.driver.allocate(4096)
        self.rounds = 2 if context.dry else 9

    def start(
        self, name: str, blocks: int, params: ctypes.Structure, *, cooperative: bool = False,
        stream: ctypes.c_void_p | None = None,
    ) -> None:  # fmt: skip
        """Launch one."""
        function = self.driver.function(self.module, f"probe_{name}")
        self.driver.launch(
            function, blocks, THREADS, params, cooperative=cooperative, stream=stream
        )

    def seconds(self, work: Callable[[], None]) -> float:
        """Time work and the wait for it."""
        self.driver.synchronise()
        begun = perf_counter()
        work()
        self.driver.synchronise()
        return perf_counter() - begun

    def figure(self, work: Callable[[], float]) -> Figure:
        """Measure something several times, after once to warm up."""
        return Figure.of([work() for _ in range(self.rounds + 1)][1:])

    def slope(self, work: Callable[[int], None], few: int, many: int) -> float:
        """Seconds that one more takes: what is begun once does not count."""
        return (self.seconds(lambda: work(many)) - self.seconds(lambda: work(few))) / (many - few)


def bandwidth(probes: Probes, put: Put) -> None:
    """Bytes read per second: the best of some numbers of blocks."""
    # Many times what the card's cache holds.
    size = 1 << 16 if probes.dry else min(8 << 30, probes.driver.memory()[0] // 2)
    count = size // 16
    at = probes.driver.allocate(size)
    probes.start("fill", 8 * probes.blocks, Fill(at, count))
    found = {}
    for each in (2, 4, 8, 16):
        params = Read(at, count, probes.spare)
        blocks = each * probes.blocks

        def once(params: ctypes.Structure = params, blocks: int = blocks) -> float:
            return size / 1e9 / probes.seconds(lambda: probes.start("read", blocks, params))

        found[each] = probes.figure(once)
    best = max(found, key=lambda each: found[each].median)
    put(what=READ, value=found[best].json(), blocks_each=best, bytes=size)


def arithmetic(probes: Probes, put: Put) -> None:
    """Multiply-adds, dot products of four bytes, and bytes on tensor cores: what kernels use."""
    rounds = 4 if probes.dry else 1 << 16
    blocks = 8 * probes.blocks
    # Of a thread: a warp's product is 16 by 8 by 32 multiply-adds.
    for what, kernel, each in ((FMA, "multiply_add", 2), (DOT, "dot", 8), (TENSOR, "tensor", 256)):
        work = Work(probes.spare, rounds, 0.5)
        operations = each * CHAINS * rounds * THREADS * blocks

        def once(
            kernel: str = kernel, work: ctypes.Structure = work, count: int = operations
        ) -> float:
            return count / 1e9 / probes.seconds(lambda: probes.start(kernel, blocks, work))

        put(what=what, value=probes.figure(once).json())


def launches(probes: Probes, put: Put) -> None:
    """An empty kernel: one launch of many, and one node of many in a graph."""
    few, many = (2, 6) if probes.dry else (100, 1100)
    params = Nothing(probes.spare)

    def begin(count: int, stream: ctypes.c_void_p | None = None) -> None:
        for _ in range(count):
            probes.start("nothing", probes.blocks, params, stream=stream)

    value = probes.figure(lambda: 1e6 * probes.slope(begin, few, many))
    put(what=LAUNCH, value=value.json())
    graphs = {n: probes.driver.graph(lambda s, n=n: begin(n, s)) for n in (1, few, many)}  # type: ignore[misc]

    def play(count: int) -> None:
        probes.driver.launch_graph(graphs[count])

    value = probes.figure(lambda: 1e6 * probes.slope(play, few, many))
    put(what=IN_GRAPH, value=value.json(), kernels=many - few)

    def again(count: int) -> None:
        for _ in range(count):
            play(1)

    value = probes.figure(lambda: 1e6 * probes.slope(again, few, many))
    put(what=GRAPH, value=value.json())


def barriers(probes: Probes, put: Put) -> None:
    """A barrier over one block on each processor, and over two."""
    few, many = (1, 3) if probes.dry else (500, 5500)
    for each in (1, 2):
        blocks = each * probes.blocks

        def wait(count: int, blocks: int = blocks) -> None:
            counter = ctypes.c_uint64(probes.spare)
            size = ctypes.c_size_t(64)
            probes.driver.call("cuMemsetD8Async", counter, 0, size, probes.driver.stream)
            params = Barrier(probes.spare, count)
            probes.start("barrier", blocks, params, cooperative=True)

        value = probes.figure(lambda wait=wait: 1e6 * probes.slope(wait, few, many))  # type: ignore[misc]
        put(
            what=BARRIER if each == 1 else f"{BARRIER}, {each} blocks each",
            value=value.json(),
            blocks=blocks,
        )


def units(context: Context) -> list[Unit]:
    """Return what this part does."""

    def of(work: Callable[[Probes, Put], None]) -> Callable[[Put], None]:
        return lambda put: work(context.keep("probes", lambda: Probes(context)), put)

    return [
        Unit("bandwidth", of(bandwidth), 60),
        Unit("arithmetic", of(arithmetic), 30),
        Unit("launches", of(launches), 30),
        Unit("barriers", of(barriers), 30),
    ]
