"""Importing the package is quick and brings nothing heavy along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
start = time.perf_counter()
import spikelet
print(time.perf_counter() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
import spikelet
model = spikelet.load(sys.argv[1], threads=1)
assert len(model.generate([1], max_new_tokens=4).run().ids) == 4
for call in (
    lambda: model.forward([1], model.new_state()),
    lambda: model.score([1, 2]),
    lambda: model.trace([1]).spikes,
    lambda: model.new_state().to_numpy(),
    lambda: model.new_state({}),
):
    try:
        call()
    except ImportError as error:
        assert "numpy" in str(error)
    else:
        raise AssertionError
"""


def test_generating_needs_no_numpy(golden: Path) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_NUMPY, golden / "spikegpt-tiny"], check=True)


def test_import(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, modules = output.splitlines()
    with capsys.disabled():
        print(f"\nimport spikelet: {1000 * float(seconds):.0f} ms")
    heavy = {"torch", "tokenizers", "safetensors", "transformers", "numpy", "asyncio", "argparse"}
    assert not heavy & set(modules.split())


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import spikelet.training
try:
    spikelet.training.SpikeGPT
except ModuleNotFoundError as error:
    assert "torch is needed" in str(error) and "spikelet[train]" in str(error), error
else:
    raise AssertionError
"""


def test_training_without_torch_says_what_to_install() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)
