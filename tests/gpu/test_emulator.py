"""The emulator of kernels/simt runs right kernels rightly and finds the mistakes of wrong ones."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpu import emulator
from gpu.sample_kernels import launch

HERE = Path(__file__).parent
ORDERS = pytest.mark.parametrize("order", emulator.ORDERS)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return emulator.load(emulator.build(HERE / "samples.cu"))


@pytest.fixture(scope="module")
def sanitized() -> Path:
    emulator.sanitizer()
    return emulator.build(HERE / "samples.cu", sanitize=True)


@ORDERS
def test_blocks_warps_and_shared_memory(library: ctypes.CDLL, order: str) -> None:
    emulator.set_order(library, order)
    x, out = np.arange(192, dtype=np.float32), np.full(3, np.nan, np.float32)
    assert launch(library, "block_sum_64", x, out, 0, blocks=3) is None
    assert out.tolist() == x.reshape(3, 64).sum(1).tolist()


@ORDERS
def test_warp_collectives(library: ctypes.CDLL, order: str) -> None:
    emulator.set_order(library, order)
    x, out = np.arange(32, dtype=np.float32) / 32, np.full((32, 4), np.nan, np.float32)
    assert launch(library, "collectives_32", x, out, 0) is None
    lanes = np.arange(32)
    assert (out[:, 0] == x[5]).all()
    assert (out[:, 1] == x[np.where(lanes + 3 < 32, lanes + 3, lanes)]).all()
    assert (out[:, 2] == 0xFFFE).all()
    assert (out[:, 3] == x[5] + x[lanes ^ 1]).all()


def test_a_race_shows_in_another_order(library: ctypes.CDLL) -> None:
    x, results = np.ones(64, np.float32), set()
    for order in emulator.ORDERS:
        emulator.set_order(library, order)
        out = np.zeros(1, np.float32)
        assert launch(library, "block_sum_racing_64", x, out, 0) is None
        results.add(str(out[0]))
    assert results >= {"64.0", "nan"}


def test_threads_in_the_same_memory_are_seen_without_a_barrier(library: ctypes.CDLL) -> None:
    x, results = np.ones(1, np.float32), {}
    for kernel in ("count_up_32", "count_up_overlapping_32"):
        for order in emulator.ORDERS:
            emulator.set_order(library, order)
            out = np.zeros(32, np.float32)
            assert launch(library, kernel, x, out, 9) is None
            results[kernel, order] = (out == 9).all()
    assert results == {key: key != ("count_up_overlapping_32", "shuffled") for key in results}


@ORDERS
def test_threads_that_wait_for_ever_are_reported(library: ctypes.CDLL, order: str) -> None:
    emulator.set_order(library, order)
    x, out = np.ones(64, np.float32), np.zeros(1, np.float32)
    assert launch(library, "divergent_barrier_64", x, out, 24) == (
        "divergent_barrier_64, block (0, 0, 0): 40 of 64 threads wait for ever at a barrier"
    )
    assert launch(library, "lonely_shuffle_64", x, out, 3) == (
        "lonely_shuffle_64, block (0, 0, 0): 29 of 64 threads wait for ever at a warp operation"
    )
    # The emulator works on after that.
    assert launch(library, "block_sum_64", x, out, 0) is None
    assert out[0] == 64


@ORDERS
def test_parts_of_a_warp_meet_by_themselves(library: ctypes.CDLL, order: str) -> None:
    emulator.set_order(library, order)
    x, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    assert launch(library, "halves_of_a_warp_32", x, out, 16) is None
    assert out.tolist() == [3.0] * 16 + [19.0] * 16
    found = launch(library, "halves_of_a_warp_32", x, out, 8)
    assert found is not None
    assert found.endswith("a lane takes part that is not in its mask")


def test_unwritten_shared_memory_is_nan(library: ctypes.CDLL) -> None:
    x = np.zeros(1, np.float32)
    assert launch(library, "unwritten_shared_1", x, x, 3) is None
    assert np.isnan(x[0])


def run_sanitized(
    library: Path, *command: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with AddressSanitizer in it, as loading such a library needs."""
    environment = os.environ | {
        "LD_PRELOAD": emulator.sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "SPIKELET_TEST_SIMT": str(library),
        **settings,
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("kernel", "good", "bad", "complaint"),
    [
        ("beyond_shared_1", 3, 4, "heap-buffer-overflow"),
        ("beyond_global_1", 63, 64, "heap-buffer-overflow"),
        ("shift_too_far_1", 31, 32, "shift exponent 32 is too large"),
    ],
)
def test_sanitizers_name_the_line(
    sanitized: Path, kernel: str, good: int, bad: int, complaint: str
) -> None:
    program = str(HERE / "sample_kernels.py")
    fine = run_sanitized(sanitized, program, str(sanitized), kernel, str(good))
    assert fine.returncode == 0, fine.stderr
    broken = run_sanitized(sanitized, program, str(sanitized), kernel, str(bad))
    assert broken.returncode != 0
    assert complaint in broken.stderr
    assert "samples.cu:" in broken.stderr


# Prompts long and short, one row and many: every kernel of generation runs.
GENERATE = """
import os
import sys
import spikelet

golden, ways = sys.argv[1], [("f32", "chain"), ("q8", "cooperative"), ("bf16", "graph")]
prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]
for name in ("spikegpt-tiny", "rwkv4-tiny"):
    for dtype, driver in ways:
        os.environ["SPIKELET_CUDA_DRIVER"] = driver
        texts = []
        for device in ("cpu", "cuda"):
            model = spikelet.load(f"{golden}/{name}", dtype=dtype, device=device)
            options = {"max_new_tokens": 5, "seed": 5, "ignore_eos": True}
            one = model.generate(prompt, **options).run().ids
            rows = model.generate_batch([prompt[i:] for i in range(10)], **options)
            texts.append([one, *(row.ids for row in rows)])
        assert texts[0] == texts[1], (name, dtype, texts)
print("the same")
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("streams", ["eager", "lazy"])
def test_generation_under_sanitizers(tmp_path: Path, streams: str) -> None:
    emulator.sanitizer()
    library = emulator.build(sanitize=True, private=False)
    golden = str(HERE.parent / "golden")
    done = run_sanitized(
        library, "-c", GENERATE, golden,
        LD_LIBRARY_PATH=str(library.parent), SIMT_STREAMS=streams, SPIKELET_CACHE=str(tmp_path),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


@pytest.mark.timeout(600)
def test_training_kernels_under_sanitizers() -> None:
    pytest.importorskip("torch")
    emulator.sanitizer()
    library = emulator.build(sanitize=True)
    tests = str(HERE.parent / "training" / "test_ops_cuda.py")
    done = run_sanitized(
        library, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-k", "(bits and forward) or twin", tests,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
