"""Decode, passes of 4 tokens and prefill of random models, beside what the machine gives.

    python benches/decode.py [--quick] [--json FILE]

Every row is the median of rounds in which all measurements of a model alternate, with the
bandwidth and the FMA peak measured in the same rounds, because machines drift. Shares are what was
reached of what the machine gives: bytes of weights read per second against read bandwidth (decode),
multiply-adds per second against the f32 FMA peak (prefill).

Bytes read: rows of `ffn.value` that relu² makes zero are skipped, so a decode step reads less than
all weights. The share counts only what is read.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from shapes import RWKV4_169M, SPIKEGPT_216M, Shape, write_random

import spikelet
from spikelet import _spikelet

BYTES = {"f32": 4, "bf16": 2, "f16": 2}
PROMPT = 512


@dataclass
class Row:
    """One line of the table; times in seconds."""

    model: str
    dtype: str
    threads: int
    decode_tokens_per_second: float
    decode_bandwidth_share: float
    pass4_over_pass1: float
    prefill_tokens_per_second: float
    prefill_fma_share: float
    read_gb_per_second: float
    fma_gflop_per_second: float
    relu2_density: float


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(shape: Shape, folder: Path, dtype: str, threads: int, rounds: int, steps: int) -> Row:
    """Measures one model in one format."""
    model = spikelet.load(folder, dtype=dtype, threads=threads)
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, shape.vocab, PROMPT).tolist()
    density = float(np.mean(model.trace(prompt[:64]).relu2_density))

    one: list[float] = []
    four: list[float] = []
    prefill: list[float] = []
    bandwidth: list[float] = []
    peak: list[float] = []
    state = model.new_state()
    model.forward(prompt[:8], state, all_logits=False)
    for _ in range(rounds):
        bandwidth.append(_spikelet.measure_read_bandwidth(threads))
        peak.append(_spikelet.measure_fma_peak(threads))
        for i in range(steps):
            token = prompt[i % PROMPT]
            one.append(timed(lambda token=token: model.forward([token], state, all_logits=False)))
            ids = prompt[i % 500 : i % 500 + 4]
            four.append(timed(lambda ids=ids: model.forward(ids, state, all_logits=True)))
        fresh = model.new_state()
        prefill.append(timed(lambda fresh=fresh: model.forward(prompt, fresh, all_logits=False)))

    pass1, pass4 = statistics.median(one), statistics.median(four)
    prefill_s = statistics.median(prefill)
    value_rows = shape.layers * 4 * shape.hidden**2
    read = (shape.weights_read - value_rows * (1 - density)) * BYTES[dtype]
    flop = 2 * (shape.layer_weights * PROMPT + shape.vocab * shape.hidden)
    read_gb, fma = statistics.median(bandwidth), statistics.median(peak)
    return Row(
        model=shape.name,
        dtype=dtype,
        threads=threads,
        decode_tokens_per_second=1 / pass1,
        decode_bandwidth_share=read / pass1 / 1e9 / read_gb,
        pass4_over_pass1=pass4 / pass1,
        prefill_tokens_per_second=PROMPT / prefill_s,
        prefill_fma_share=flop / prefill_s / 1e9 / fma,
        read_gb_per_second=read_gb,
        fma_gflop_per_second=fma,
        relu2_density=density,
    )


def cpu_name() -> str:
    """The processor, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Runs all rows and prints them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows and a machine line here")
    args = parser.parse_args()
    rounds, steps = (2, 6) if args.quick else (5, 12)

    print(f"{cpu_name()}, spikelet {spikelet.__version__}")
    print(
        "| model | format | threads | decode tok/s | of bandwidth | 4-token pass "
        "| prefill tok/s | of FMA peak | GB/s | GFLOP/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for shape in (SPIKEGPT_216M, RWKV4_169M):
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_random(shape, Path(temporary))
            for dtype in BYTES:
                for threads in (1, 2):
                    row = measure(shape, folder, dtype, threads, rounds, steps)
                    rows.append(row)
                    print(
                        f"| {row.model} | {row.dtype} | {row.threads} "
                        f"| {row.decode_tokens_per_second:.1f} | {row.decode_bandwidth_share:.0%} "
                        f"| {row.pass4_over_pass1:.2f} x | {row.prefill_tokens_per_second:.0f} "
                        f"| {row.prefill_fma_share:.0%} | {row.read_gb_per_second:.1f} "
                        f"| {row.fma_gflop_per_second:.0f} |",
                        flush=True,
                    )
    if args.json:
        result = {
            "machine": cpu_name(),
            "version": spikelet.__version__,
            "rows": [asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
