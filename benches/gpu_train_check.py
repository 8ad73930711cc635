"""Check and measure the CUDA kernels of training on a machine with a GPU.

    python benches/gpu_train_check.py [--quick] [--json FILE]

First every operator, forward and backward, in float32 and bfloat16, is compared with its plain
torch twin in float64, and bit by bit with the engine's CPU kernels; a wrong one ends the program
with 1. Then times: each operator fused and as its twin, with the bytes per second that the fused
one moves, and training steps of SpikeGPT fused, in plain torch, and on this machine's CPU.

Times are medians over rounds in which the rivals alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import spikelet
from spikelet.training import SpikeGPT, SpikeGPTConfig, ops
from spikelet.training.ops import cuda

Operator = Callable[..., list[Tensor]]
SIZES = ((1, 1, 1), (2, 67, 50), (3, 130, 96), (20, 16, 33))
# Of the norm of a difference, relative to that of what is expected.
LIMITS = {torch.float32: 3e-5, torch.bfloat16: 5e-3}


@dataclass
class Check:
    """One operator at one size: how far it is from its twin, and whether it has the CPU's bits."""

    operator: str
    size: tuple[int, int, int]
    dtype: str
    worst_relative_error: float
    limit: float
    bits_of_cpu: bool

    @property
    def passed(self) -> bool:
        return self.worst_relative_error <= self.limit


@dataclass
class Speed:
    """One operator, forward and backward; seconds."""

    operator: str
    size: tuple[int, int, int]
    dtype: str
    fused: float
    naive: float
    gigabytes_per_second: float


@dataclass
class Steps:
    """Training steps of one model; tokens per second."""

    model: str
    batch: int
    autocast: str
    fused: float
    naive: float | None
    cpu: float | None


def relative(found: Tensor, expected: Tensor) -> float:
    """How far apart two results are."""
    found, expected = found.double().cpu(), expected.double().cpu()
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp_min(1e-2))


def inputs(operator: str, size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """What an operator takes that has gradients, on the CPU."""
    batch, time_, channels = size
    x, y = (2 * torch.randn(2, batch, time_, channels)).to(dtype)
    row, other = torch.randn(2, batch, channels)
    vector, another = torch.rand(2, channels)
    if operator == "wkv4":
        state = torch.stack((row, 0.5 + other.abs(), row + other), dim=1)
        return [-torch.exp(4 * vector - 2), another, x, y, state]
    if operator == "lif":
        return [x, row, 0.1 + 0.8 * vector]
    return [x.float(), row, vector, another]


def fused(operator: str, dtype: torch.dtype) -> Operator:
    """The operator as models call it."""
    if operator == "wkv4":
        return lambda *a: list(ops.wkv4(*a))
    if operator == "lif":
        return lambda *a: list(ops.lif(*a))

    def mix(x: Tensor, last: Tensor, *mixes: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return ops.token_mix(x, last, mixes)

    return mix


def naive(operator: str) -> Operator:
    """Its twin in plain torch."""
    if operator == "wkv4":
        return lambda *a: list(ops.naive_wkv4(*a))
    if operator == "lif":
        return lambda *a: list(ops.naive_lif(*a))
    return lambda x, last, *mixes: ops.naive_token_mix(x, last, mixes)


def run(
    function: Operator, given: Sequence[Tensor], weights: Sequence[Tensor] | None
) -> list[Tensor]:
    """Results and gradients. `weights` are the gradients of the results; None takes ones."""
    leaves = [x.detach().requires_grad_() for x in given]
    results = function(*leaves)
    if weights is None:
        weights = [torch.ones_like(result) for result in results]
    gradients = torch.autograd.grad(
        results, leaves, [w.to(r) for w, r in zip(weights, results, strict=True)]
    )
    return [*(result.detach() for result in results), *gradients]


def check(operator: str, size: tuple[int, int, int], dtype: torch.dtype, device: str) -> Check:
    """Compare one operator with its twin and with the CPU."""
    torch.manual_seed(1)
    given = inputs(operator, size, dtype)
    there = [x.to(device) for x in given]
    shapes = [result.shape for result in naive(operator)(*given)]
    weights = [torch.randn(shape) for shape in shapes]
    if operator == "wkv4":
        # The scale pp has no gradient of its own: aa and bb carry it.
        weights[1].zero_()
    found = run(fused(operator, dtype), there, [w.to(device) for w in weights])
    if operator == "mix":
        # What comes back is rounded as the results are.
        weights = [w.to(dtype) for w in weights]
    expected = run(
        naive(operator), [x.double().to(device) for x in given], [w.double() for w in weights]
    )
    here = run(fused(operator, dtype), given, weights)
    if operator == "wkv4":
        found[-1], expected[-1], here[-1] = (r[-1][:, :2] for r in (found, expected, here))
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    if operator == "mix":
        # The gradients of the mixes are added up in tiles of time, on CPU in one chain.
        found, here = found[:-2], here[:-2]
    same = all(torch.equal(a.cpu(), b) for a, b in zip(found, here, strict=True))
    return Check(operator, size, str(dtype)[6:], max(errors), LIMITS[dtype], same)


def seconds(
    work: Sequence[Callable[[], object]], rounds: int, synchronise: Callable[[], None]
) -> list[float]:
    """The median time of each piece of work, in alternating rounds after one to warm up."""
    times: list[list[float]] = [[] for _ in work]
    for round_ in range(rounds + 1):
        for one, kept in zip(work, times, strict=True):
            synchronise()
            start = time.perf_counter()
            one()
            synchronise()
            if round_ > 0:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]


def moved(operator: str, size: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Bytes of [batch, time, channels] tensors that forward and backward move at least."""
    elements = size[0] * size[1] * size[2]
    narrow, wide = dtype.itemsize, 4
    # forward: inputs, results; backward: inputs, gradients of results, gradients of inputs.
    per_element = {
        "wkv4": (2 * narrow + wide) + (2 * narrow + wide + 2 * narrow) + 2 * narrow,
        "lif": (narrow + wide) + (narrow + wide + narrow) + narrow,
        "mix": (wide + 2 * narrow) + (wide + 2 * narrow + wide),
    }
    return elements * per_element[operator]


def speed(
    operator: str, size: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int,
    synchronise: Callable[[], None],
) -> Speed:  # fmt: skip
    """Time one operator against its twin."""
    given = [x.to(device) for x in inputs(operator, size, dtype)]
    wide = [x.float() for x in given]
    (quick,) = seconds([lambda: run(fused(operator, dtype), given, None)], 4 * rounds, synchronise)
    (slow,) = seconds([lambda: run(naive(operator), wide, None)], rounds, synchronise)
    rate = moved(operator, size, dtype) / quick / 1e9
    return Speed(operator, size, str(dtype)[6:], quick, slow, rate)


def tokens_per_second(
    config: dict[str, int], batch: int, autocast: bool, device: str, is_fused: bool, rounds: int,
    synchronise: Callable[[], None],
) -> float:  # fmt: skip
    """Forward and backward of a SpikeGPT, without the optimiser."""
    torch.manual_seed(1)
    model = SpikeGPT(SpikeGPTConfig(**config, fused=is_fused)).to(device)
    ids = torch.randint(0, config["vocab_size"], (batch, config["ctx_len"] + 1), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        model.zero_grad()

    (taken,) = seconds([step], rounds, synchronise)
    return batch * config["ctx_len"] / taken


def table(rows: Sequence[Check | Speed | Steps]) -> None:
    """Print rows of one kind."""
    keys = list(asdict(rows[0]))
    print(f"\n| {' | '.join(keys)} |\n|{'---|' * len(keys)}")
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in asdict(row).values())
        print(f"| {' | '.join(cells)} |", flush=True)


def checks(device: str) -> list[Check]:
    """Compare everything."""
    return [
        check(operator, size, dtype, device)
        for operator in ("wkv4", "lif", "mix")
        for size in SIZES
        for dtype in (torch.float32, torch.bfloat16)
    ]


def speeds(device: str, quick: bool, synchronise: Callable[[], None]) -> list[Speed]:
    """Time the operators at the sizes of SpikeGPT-216M and of a small batch."""
    sizes = ((1, 256, 768), (12, 1024, 768)) if not quick else ((1, 256, 768),)
    return [
        speed(operator, size, dtype, device, 3, synchronise)
        for operator in ("wkv4", "lif", "mix")
        for size in sizes
        for dtype in (torch.float32, torch.bfloat16)
    ]


def steps(device: str, quick: bool, synchronise: Callable[[], None]) -> list[Steps]:
    """Time whole models: a small one on all three ways, the published one on the GPU only."""
    small = {"vocab_size": 256, "ctx_len": 256, "n_layer": 6, "n_embd": 192}
    large = {"vocab_size": 50277, "ctx_len": 1024, "n_layer": 18, "n_embd": 768}

    def rate(config: dict[str, int], batch: int, half: bool, on: str, is_fused: bool) -> float:
        wait = synchronise if on == device else lambda: None
        return tokens_per_second(config, batch, half, on, is_fused, 3 if is_fused else 1, wait)

    rows = []
    for half in (False, True):
        name = "bf16" if half else "f32"
        here, plain = rate(small, 32, half, device, True), rate(small, 32, half, device, False)
        there = rate(small, 32, half, "cpu", True)
        rows.append(Steps("SpikeGPT 6 x 192", 32, name, here, plain, there))
        if not quick:
            here = rate(large, 8, half, device, True)
            rows.append(Steps("SpikeGPT-216M 18 x 768", 8, name, here, None, None))
    return rows


def main() -> int:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--json", type=Path, help="write everything and a machine line here")
    arguments = parser.parse_args()
    if not cuda.available():
        print(f"nothing to measure: {cuda.reason()}", file=sys.stderr)
        return 2
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(machine)
    found = checks("cuda")
    table(found)
    result: dict[str, object] = {
        "machine": machine,
        "version": spikelet.__version__,
        "checks": [asdict(row) for row in found],
    }
    if all(row.passed for row in found):
        operators = speeds("cuda", arguments.quick, torch.cuda.synchronize)
        table(operators)
        models = steps("cuda", arguments.quick, torch.cuda.synchronize)
        table(models)
        result |= {
            "operators": [asdict(row) for row in operators],
            "models": [asdict(row) for row in models],
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [row for row in found if not row.passed]
    for row in wrong:
        print(f"WRONG: {row}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
