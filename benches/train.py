"""Training steps with the fused operators beside the same model in plain torch.

    python benches/train.py [--quick] [--json FILE]

A byte model of 6 layers x 192 with windows of 256 tokens. Plain torch is vectorised over batch and
channels and loops over time (`fused=False`, the reference that the tests compare with). Both run in
one process, alternating, with the same number of threads; every figure is a median over rounds. One
thread is timed by the processor time of this process, which leaves out what other programs take,
two by the clock.

Shares are of the time that torch's profiler counts on one thread. Memory is what a fresh process
needs more at its peak for a longer window, next to the bytes that one token's activations have.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from harness import cpu_name

import spikelet
from spikelet.training import SpikeGPT, SpikeGPTConfig, ops

LAYERS, CHANNELS, VOCAB, CONTEXT, BATCH = 6, 192, 256, 256, 16

# What autograd keeps per token and layer, in floats per channel: the inputs of ln1 and ln2, of both
# token shifts, of seven matrices (the last of them 4 channels wide) and the 4 of relu's result; k
# and v of WKV; both factors of the two gates; the inputs of both neurons.
FLOATS_PER_CHANNEL = 2 + 2 + (6 + 4) + 4 + 2 + 4 + 2


@dataclass
class Row:
    """One line of the table."""

    what: str
    dtype: str
    threads: int
    fused_tokens_per_second: float
    plain_tokens_per_second: float
    ratio: float


def make_step(fused: bool, dtype: str, context: int = CONTEXT) -> Callable[[], None]:
    """One optimiser step on random bytes."""
    torch.manual_seed(0)
    config = SpikeGPTConfig(
        VOCAB, context, "RWKV", LAYERS, CHANNELS, spike_embedding=False, dropout=0.0, fused=fused
    )
    model = SpikeGPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.05 * torch.randn_like(parameter))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, VOCAB, (BATCH, context + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_operator(name: str, fused: bool) -> Callable[[], None]:
    """Forward and backward of one operator."""
    torch.manual_seed(0)
    shape = (BATCH, CONTEXT, CHANNELS)
    k, v = (2 * torch.randn(2, *shape)).requires_grad_().unbind()
    w, u = -torch.rand(CHANNELS), torch.randn(CHANNELS)
    last, mixes, weight = torch.zeros(BATCH, CHANNELS), [w, u, w], torch.randn(shape)

    def run() -> None:
        if name == "wkv4":
            y, _ = (ops.wkv4 if fused else ops.naive_wkv4)(w, u, k, v)
            torch.autograd.grad(y, (k, v), weight)
        elif name == "lif":
            spikes, _ = (ops.lif if fused else ops.naive_lif)(k)
            torch.autograd.grad(spikes, k, weight)
        else:
            mixed = (ops.token_mix if fused else ops.naive_token_mix)(k, last, mixes)
            torch.autograd.grad(mixed, k, [weight] * 3)

    return run


def seconds(work: Callable[[], None], repeats: int, threads: int) -> float:
    """Mean seconds of a few runs."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats


def compare(what: str, dtype: str, threads: int, rounds: int) -> Row:
    """Alternates the fused and the plain form."""
    torch.set_num_threads(threads)
    step = what == "step"
    works = [make_step(f, dtype) if step else make_operator(what, f) for f in (True, False)]
    for work in works:
        work()
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for found, work, repeats in zip(times, works, (1 if step else 5, 1), strict=True):
            found.append(seconds(work, repeats, threads))
    fused, plain = (BATCH * CONTEXT / statistics.median(found) for found in times)
    return Row(what, dtype, threads, fused, plain, fused / plain)


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn"),
    "WKV, neurons, token shift": ("spikelet",),
    "layer norm": ("layer_norm",),
    "optimiser": ("adam",),
}


def shares(dtype: str) -> dict[str, float]:
    """Where the time of fused steps goes, on one thread."""
    torch.set_num_threads(1)
    step = make_step(True, dtype)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    found = dict.fromkeys([*KINDS, "elementwise and the rest"], 0.0)
    for event in profile.key_averages():
        kinds = (kind for kind, marks in KINDS.items() if any(m in event.key for m in marks))
        found[next(kinds, "elementwise and the rest")] += event.self_cpu_time_total
    total = sum(found.values())
    return {kind: value / total for kind, value in found.items()}


def peak_bytes(context: int) -> int:
    """Peak memory of a fresh process after two steps."""
    command = [sys.executable, __file__, "--memory-of", str(context)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory() -> dict[str, float]:
    """Growth of the peak per token of context, in bytes per row and layer."""
    contexts = (256, 512, 1024)
    peaks = [peak_bytes(context) for context in contexts]
    tokens = BATCH * LAYERS
    growth = [
        (peaks[i + 1] - peaks[i]) / (contexts[i + 1] - contexts[i]) / tokens for i in range(2)
    ]
    return {
        "kept_bytes_per_token_and_layer": 4 * FLOATS_PER_CHANNEL * CHANNELS,
        "peak_growth_256_to_512": growth[0],
        "peak_growth_512_to_1024": growth[1],
        "peak_bytes_at_256": peaks[0],
    }


def main() -> None:
    """Runs all measurements and prints them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows and a machine line here")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        torch.set_num_threads(1)
        step = make_step(True, "f32", args.memory_of)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return

    print(f"{cpu_name()}, spikelet {spikelet.__version__}, torch {torch.__version__}")
    print(f"{LAYERS} layers x {CHANNELS}, {BATCH} windows of {CONTEXT} bytes")
    print("| what | type | threads | fused tok/s | plain torch tok/s | ratio |")
    print("|---|---|---|---|---|---|")
    rows: list[Row] = []
    plan = [("step", dtype) for dtype in ("f32", "bf16")]
    plan += [(name, "f32") for name in ("wkv4", "lif", "mix")]
    for threads in (1, 2):
        for what, dtype in plan:
            row = compare(what, dtype, threads, rounds=3 if args.quick else 5)
            rows.append(row)
            print(
                f"| {what} | {dtype} | {threads} | {row.fused_tokens_per_second:,.0f} "
                f"| {row.plain_tokens_per_second:,.0f} | {row.ratio:.1f} x |",
                flush=True,
            )
    parts = {dtype: shares(dtype) for dtype in ("f32", "bf16")}
    for dtype, found in parts.items():
        line = ", ".join(f"{kind} {share:.0%}" for kind, share in found.items())
        print(f"time of a fused {dtype} step: {line}")
    grown = memory()
    print(", ".join(f"{name} {value:,.0f}" for name, value in grown.items()))
    if args.json:
        result = {
            "machine": cpu_name(),
            "version": spikelet.__version__,
            "torch": torch.__version__,
            "rows": [asdict(row) for row in rows],
            "shares": parts,
            "memory": grown,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
