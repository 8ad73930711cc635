"""What a measured figure has to be read with: the processor, and what it can give."""

from __future__ import annotations

import datetime as dt
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import spikelet
from spikelet import _spikelet

BLOCK = 64
"""Weights that share a scale in the quantised formats."""
WEIGHT_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8": 1 + 2 / BLOCK, "q4": 0.5 + 2 / BLOCK}
"""Bytes that a weight takes in memory; the head of a q4 model has 8 bits."""
PASSES = (1, 2, 3, 4, 5, 6, 8, 12, 16)
PASS_TURNS = 5
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "asimd",
    "asimddp",
)
"""Of the processor's flags, those that matter here."""


def cpuinfo() -> dict[str, str]:
    """The first processor as the system describes it."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {"model name": platform.processor()}
    first = file.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_name() -> str:
    """The processor's name; guests often see less than its generation, so family and model too."""
    info = cpuinfo()
    name = info.get("model name", "unknown")
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info['model']})"
    return name


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, instruction set, versions, date and load."""
    features = spikelet.cpu_features()
    given = cpuinfo()
    flags = set((given.get("flags") or given.get("Features") or "").split())
    return {
        "cpu": cpu_name(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": cores(),
        "isa": features["chosen"],
        "isa_levels": features["levels"],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "spikelet": spikelet.__version__,
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def given(threads: int) -> dict[str, float]:
    """What so many threads get in a second: memory, multiply-adds of floats and of bytes."""
    return {
        "read_gb_per_second": _spikelet.measure_read_bandwidth(threads),
        "fma_gflop_per_second": _spikelet.measure_fma_peak(threads),
        "int8_gop_per_second": _spikelet.measure_int8_peak(threads),
    }


def describe(m: Mapping[str, Any]) -> str:
    """The line above a table: what `machine` found."""
    line = f"{m['cpu']}, {m['cores']} cores, {m['isa']}, spikelet {m['spikelet']}"
    return f"{line}, {m['date']}, load average {m['load_average']}"


def describe_given(found: Mapping[str, float], threads: int) -> str:
    """A line on what `given` found."""
    read, fma, int8 = (found[f"{key}_per_second"] for key in ("read_gb", "fma_gflop", "int8_gop"))
    return (
        f"{threads} thread{'s' * (threads > 1)}: memory {read:.1f} GB/s, "
        f"multiply-adds {fma:.0f} GFLOP/s, of bytes {int8:.0f} GOP/s"
    )


def matrix_weights(config: spikelet.ModelConfig) -> tuple[int, int]:
    """Matrix elements of all blocks, and of the head: what a decode step reads at most."""
    wide, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (5 * wide**2 + 2 * wide * inner), config.vocab_size * wide


def measure_passes(model: spikelet.Model) -> dict[int, float]:
    """Seconds of a pass by its number of tokens: the least of several turns over all of them."""
    ids = np.random.default_rng(0).integers(0, model.vocab_size, max(PASSES)).tolist()
    state = model.new_state()
    best = dict.fromkeys(PASSES, math.inf)
    for _ in range(PASS_TURNS):
        for tokens in PASSES:
            begun = perf_counter()
            model.forward(ids[:tokens], state)
            best[tokens] = min(best[tokens], perf_counter() - begun)
    return best


def pass_bound(model: spikelet.Model, tokens: int, found: Mapping[str, float]) -> float:
    """Seconds of a pass over `tokens` if nothing but memory and multiply-adds counted.

    All weights are read from memory once and all are multiplied: a model that fits in the caches,
    or whose zeros are skipped, can be quicker.
    """
    blocks, head = matrix_weights(model.config)
    integers = model.dtype in ("q8", "q4")
    size = blocks * WEIGHT_BYTES[model.dtype]
    size += head * WEIGHT_BYTES["q8" if integers else model.dtype]
    peak = found["int8_gop_per_second" if integers else "fma_gflop_per_second"]
    memory = size / 1e9 / found["read_gb_per_second"]
    return max(memory, 2 * tokens * (blocks + head) / 1e9 / peak)
