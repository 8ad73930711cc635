"""Part `training`: `gpu_train_check.py`, unit by unit."""

from __future__ import annotations

from dataclasses import asdict

import gpu_train_check as check
import torch

from gpu_check.child import Context
from gpu_check.record import Put, Unit
from spikelet.training.ops import cuda

OPERATORS = ("wkv4", "lif", "mix")
DTYPES = (torch.float32, torch.bfloat16)


def checks(context: Context, put: Put) -> None:
    """Every operator against its twin in float64 and against the CPU's bits."""
    if context.torch_device() == "cuda" and not cuda.available():
        raise RuntimeError(str(cuda.reason()))
    sizes = check.SIZES[1:2] if context.dry else check.SIZES
    for operator in OPERATORS:
        for size in sizes:
            for dtype in DTYPES:
                row = check.check(operator, size, dtype, context.torch_device())
                put(**asdict(row), passed=row.passed and row.bits_of_cpu)


def speeds(context: Context, put: Put) -> None:
    """Operators, fused and plain."""
    wait = torch.cuda.synchronize if context.torch_device() == "cuda" else lambda: None
    sizes = ((1, 9, 5),) if context.dry else ((1, 256, 768), (12, 1024, 768))
    for size in sizes:
        for operator in OPERATORS:
            for dtype in DTYPES:
                row = check.speed(operator, size, dtype, context.torch_device(), 3, wait)
                put(**asdict(row))


def steps(context: Context, put: Put) -> None:
    """Whole models."""
    if context.dry:
        config = {"vocab_size": 30, "ctx_len": 8, "n_layer": 1, "n_embd": 8}
        rate = check.tokens_per_second(config, 1, False, "cpu", True, 1, lambda: None)
        put(model="tiny", fused=rate)
        return
    for row in check.steps("cuda", False, torch.cuda.synchronize):
        put(**asdict(row))


def units(context: Context) -> list[Unit]:
    """Return what this part does."""
    return [
        Unit("operators", lambda put: checks(context, put), 60),
        Unit("speed of operators", lambda put: speeds(context, put), 60, 5),
        Unit("steps", lambda put: steps(context, put), 90, 10),
    ]
