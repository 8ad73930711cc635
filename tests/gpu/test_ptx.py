"""The PTX that is checked in is what the kernels give, and fits on the devices it is for."""

from __future__ import annotations

import locale
import re
import subprocess
from pathlib import Path

import pytest
from kernels import build_ptx

# Registers that a kernel may use. Walks over time are one warp a block and hide latency with loads
# under way, not with other warps: 152 registers still let in the 13 blocks whose shared memory
# (12 KB in the backward of WKV) a multiprocessor of compute capability 8.0 has room for.
BUDGET = {
    # A block of 384 threads has a multiprocessor for itself: as many as there are.
    "spk_narrow": 168,
    # Two blocks to a multiprocessor, of which a line has no use for more.
    "spk_draw": 96,
    # Tiles live in registers; two blocks of 128 threads find room.
    "spk_wide_product": 232,
    "spk_wide_embed": 48,
    "spk_wide_inputs": 48,
    "spk_wide_encode": 48,
    "spk_wide_wkv": 128,
    "spk_wide_neurons": 128,
    "spk_fill": 24,
    "spk_sum_rows": 32,
    "spk_mix_forward": 48,
    "spk_mix_backward": 128,
    "spk_lif_forward": 64,
    "spk_lif_backward": 112,
    "spk_wkv4_forward": 80,
    "spk_wkv4_backward": 152,
}
# Four words once in a phase, on the one architecture whose compiler wants them.
SPILLS = {("spk_narrow_q8_8", "sm_120")}
ARCHITECTURES = {
    "compute_80": ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100"),
    "compute_90": ("sm_90", "sm_100", "sm_120"),
}


@pytest.fixture(scope="module")
def nvrtc() -> build_ptx.Nvrtc:
    try:
        return build_ptx.Nvrtc(build_ptx.tools())
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ptxas() -> Path:
    found = build_ptx.tools() / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
    if not found.exists():
        pytest.skip(f"{found} is not there; `make kernel-tools` installs it")
    return found


def test_ptx_is_that_of_the_sources() -> None:
    assert build_ptx.stale() is None, "run `make kernels`"


def test_a_changed_source_or_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ptx"
    folder.mkdir()
    for path in build_ptx.PTX.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build_ptx, "PTX", folder)
    assert build_ptx.stale() is None
    with monkeypatch.context() as patch:
        patch.setattr(build_ptx, "OPTIONS", ("--std=c++17",))
        assert build_ptx.stale() is not None
    with monkeypatch.context() as patch:
        files = build_ptx.sources("train")
        assert {"train.cu", "common.cuh", "train/wkv4.cuh", "train/columns.cuh"} < set(files)
        changed = files | {"common.cuh": files["common.cuh"] + "// more\n"}
        patch.setattr(build_ptx, "sources", lambda module: changed)
        assert build_ptx.stale() is not None
    edited = folder / "train.compute_80.ptx"
    edited.write_text(edited.read_text() + "// more\n")
    assert build_ptx.stale() is not None
    edited.unlink()
    assert build_ptx.stale() is not None


@pytest.mark.parametrize("target", build_ptx.TARGETS)
def test_the_pinned_compiler_gives_what_is_checked_in(nvrtc: build_ptx.Nvrtc, target: str) -> None:
    for module in build_ptx.MODULES:
        found = build_ptx.checked_in()[build_ptx.file_name(module, target)]
        assert build_ptx.same(nvrtc.compile(module, target), found), "run `make kernels`"
        # What the oldest supported driver, 525, reads.
        assert "\n.version 8.0\n" in found


def test_compiling_leaves_the_locale_alone(nvrtc: build_ptx.Nvrtc) -> None:
    before = locale.getpreferredencoding(do_setlocale=False)
    nvrtc.compile("train", "compute_80")
    assert locale.getpreferredencoding(do_setlocale=False) == before


def test_mistakes_are_shown_with_their_line(
    nvrtc: build_ptx.Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_ptx, "sources", lambda module: {"train.cu": "\nvoid broken( {}\n"})
    with pytest.raises(RuntimeError, match=r"train\.cu\(2\): error"):
        nvrtc.compile("train", "compute_80")
    warned = "__device__ int never() { int unused; return 1; }\n"
    monkeypatch.setattr(build_ptx, "sources", lambda module: {"train.cu": warned})
    with pytest.raises(RuntimeError, match=r"warnings\ntrain\.cu\(1\): warning"):
        nvrtc.compile("train", "compute_80")


@pytest.mark.parametrize("target", build_ptx.TARGETS)
def test_no_spills_and_few_registers(ptxas: Path, target: str) -> None:
    known = subprocess.run([ptxas, "--help"], capture_output=True, text=True, check=True).stdout
    architectures = [name for name in ARCHITECTURES[target] if f"'{name}'" in known]
    assert architectures
    for module in build_ptx.MODULES:
        path = build_ptx.folder(module) / build_ptx.file_name(module, target)
        for architecture in architectures:
            said = subprocess.run(
                [ptxas, "-v", f"-arch={architecture}", "-o", "/dev/null", path],
                capture_output=True, text=True, check=True,
            ).stderr  # fmt: skip
            kernels = said.split("Compiling entry function '")[1:]
            assert len(kernels) == path.read_text().count(".visible .entry"), said
            for kernel in kernels:
                name = kernel.partition("'")[0]
                place = f"{name} on {architecture}: {kernel}"
                if (name, architecture) not in SPILLS:
                    assert (
                        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in kernel
                    ), place
                (registers,) = re.findall(r"Used (\d+) registers", kernel)
                (budget,) = [n for prefix, n in BUDGET.items() if name.startswith(prefix)]
                assert int(registers) <= budget, place
