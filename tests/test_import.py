"""Importing the package is quick and brings nothing heavy along."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
start = time.perf_counter()
import spikelet
print(time.perf_counter() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_import(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, modules = output.splitlines()
    with capsys.disabled():
        print(f"\nimport spikelet: {1000 * float(seconds):.0f} ms")
    heavy = {"torch", "tokenizers", "safetensors", "transformers", "numpy", "asyncio", "argparse"}
    assert not heavy & set(modules.split())
