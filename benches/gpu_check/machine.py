"""Part `machine`: what doctor says, and how long it takes until a model computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from gpu_check import card
from gpu_check.child import ROOT, Context
from gpu_check.record import Put, Unit

GOLDEN = ROOT / "tests" / "golden" / "spikegpt-tiny"
FIRST_TOKEN = """
import sys, time
begun = time.perf_counter()
import spikelet
imported = time.perf_counter()
model = spikelet.load(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
model.forward([1], model.new_state(), all_logits=False)
read = time.perf_counter()
again = spikelet.load(sys.argv[1], device=sys.argv[2])
print(imported - begun, loaded - imported, read - loaded, time.perf_counter() - read)
"""


def doctor(put: Put) -> None:
    """The report of `spikelet doctor`, whole."""
    done = run([sys.executable, "-m", "spikelet", "doctor", "--json"], {})
    report = json.loads(done.stdout)
    put(passed=report["ok"], gpu=report["gpu"], report=report)


def run(command: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program; one that says nothing is an exception."""
    environment = {**os.environ, **more}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    if not done.stdout.strip():
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done


def first_token(context: Context, put: Put) -> None:
    """Seconds of a fresh process: with nothing compiled, and with the driver's cache filled."""
    model = GOLDEN if context.dry else "bundled"
    names = ("import", "load", "first_token", "load_again")
    with tempfile.TemporaryDirectory() as cache:
        for state in ("PTX compiled", "PTX from the driver's cache"):
            command = [sys.executable, "-c", FIRST_TOKEN, str(model), context.device]
            done = run(command, {"CUDA_CACHE_PATH": cache, "CUDA_CACHE_MAXSIZE": "1073741824"})
            times = [float(word) for word in done.stdout.split()]
            put(model=Path(model).name, state=state, **dict(zip(names, times, strict=True)))


def loading(context: Context, put: Put) -> None:
    """The bundled model in every format: seconds, bytes, and the device it says it is on."""
    import spikelet

    for dtype in ("f32",) if context.dry else ("f32", "bf16", "f16", "q8"):
        begun = perf_counter()
        model = spikelet.load(GOLDEN if context.dry else None, dtype=dtype, device=context.device)
        seconds = perf_counter() - begun
        put(
            dtype=dtype, seconds=seconds, weight_bytes=model.weight_bytes, device=model.device,
            passed=model.device.partition(":")[0] == context.device.partition(":")[0],
        )  # fmt: skip


def units(context: Context) -> list[Unit]:
    """Return what this part does."""
    return [
        Unit("card", lambda put: put(**card.describe()), 30),
        Unit("doctor", doctor, 70),
        Unit("first token", lambda put: first_token(context, put), 150),
        Unit("loading", lambda put: loading(context, put), 60),
    ]
