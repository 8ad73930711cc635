"""On a processor without AVX the extension runs, and computes the same bits.

Debian's qemu-user emulates one: an instruction that the processor lacks ends the process with
SIGILL.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spikelet

GOLDEN = Path(__file__).parent / "golden"
QEMU = shutil.which("qemu-x86_64")

SCRIPT = """
import sys
import numpy as np
import spikelet

model = spikelet.load(sys.argv[1], threads=2)
assert model.isa == "portable", model.isa
ids = list(range(0, 200, 7))
np.save(sys.argv[2], model.forward(ids, model.new_state()))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64 on x86-64")
@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed")
@pytest.mark.parametrize("name", ["spikegpt-tiny", "rwkv4-tiny"])
@pytest.mark.timeout(300)
def test_a_processor_without_avx(name: str, tmp_path: Path) -> None:
    assert QEMU is not None
    out = tmp_path / "logits.npy"
    # Nehalem: SSE4.2, which numpy itself needs, and nothing later.
    command = [QEMU, "-cpu", "Nehalem", sys.executable, "-c", SCRIPT, str(GOLDEN / name), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    model = spikelet.load(GOLDEN / name)
    native = model.forward(list(range(0, 200, 7)), model.new_state())
    assert np.array_equal(np.load(out).view(np.uint32), native.view(np.uint32))
