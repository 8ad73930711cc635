"""benches/gpu_check works before it reaches a machine with a GPU: all of it that can run here.

Parts run whole, with tiny shapes, against the emulated driver; what PyTorch does on a GPU and what
compute-sanitizer says is left out.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import spikelet

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "benches"

PARTS = ("machine", "exact", "training", "sanitize", "limits", "speed", "speculation")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of the benches are found as their neighbours find them."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHES)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and BENCHES in Path(file).parents:
            del sys.modules[name]


def module(name: str) -> Any:
    """A module of the check."""
    return importlib.import_module(f"gpu_check.{name}")


def check(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program, as it is called."""
    path = os.pathsep.join([str(Path(spikelet.__file__).parents[1]), str(BENCHES)])
    return subprocess.run(
        [sys.executable, str(BENCHES / "gpu_check"), *options],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_through(part: str, tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler: kernels cannot run on the CPU")
    out = tmp_path / "out"
    done = check("--dry", "--parts", part, "--out", str(out), "--seconds", "100")
    result = json.loads((out / f"gpu-{part}.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["finished"]
    assert {unit["state"] for unit in result["units"].values()} == {"done"}
    assert result["machine"]["dry"]
    assert "emulated driver" in (out / "gpu-check.md").read_text()
    assert json.loads(done.stdout.splitlines()[-1])["wrong"] == []
    # Eight files may come back from another machine.
    assert sorted(file.name for file in out.iterdir()) == ["gpu-check.md", f"gpu-{part}.json"]


FAULTY = f"""
import ctypes, os, sys, time
sys.path.insert(0, {str(BENCHES)!r})
from pathlib import Path
from gpu_check.record import Record, Unit, run_units

class DeviceError(Exception):
    pass

def lost(put):
    put(passed=True)
    raise DeviceError("the device is lost")

def wrong(put):
    put(passed=False, what="bits")

units = [
    Unit("raises", lambda put: 1 / 0),
    Unit("lost", lost),
    Unit("crashes", lambda put: os.abort()),
    Unit("hangs", lambda put: time.sleep(60), seconds=0.5),
    Unit("wrong", wrong),
    Unit("works", lambda put: put(value=float("nan"), passed=True)),
    Unit("long", lambda put: None, needs=1000.0),
]
seconds = float(sys.argv[sys.argv.index("--seconds") + 1])
sys.exit(run_units(units, Record.open(Path(sys.argv[1]), "speed"), seconds))
"""


def test_what_crashes_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "gpu-speed.json"
    program = importlib.import_module("gpu_check.__main__")
    command = [sys.executable, "-c", FAULTY, str(file)]
    program.run_part(program.PARTS[5], 60.0, file, command)
    result = json.loads(file.read_text())
    states = {name: unit["state"] for name, unit in result["units"].items()}
    assert states == {
        "raises": "failed", "lost": "failed", "crashes": "died", "hangs": "died",
        "wrong": "done", "works": "done", "long": "left out",
    }  # fmt: skip
    assert result["finished"]
    assert "ZeroDivisionError" in result["units"]["raises"]["error"]
    assert "more than 0 s" in result["units"]["hangs"]["error"]
    # What was found before the device went is kept.
    assert result["units"]["lost"]["rows"] == [{"passed": True}]
    assert result["units"]["works"]["rows"] == [{"value": None, "passed": True}]
    summary = module("summary")
    said = summary.wrong({"speed": result})
    assert [line.split(":")[0] for line in said] == [
        f"speed, {name}" for name in ("raises", "lost", "crashes", "hangs", "wrong")
    ]
    text = summary.render({"speed": result})
    assert "No time was left for: speed, long." in text
    assert "### Wrong\n\n- speed, raises: failed: " in text


def test_a_part_that_cannot_begin_is_not_begun_again(tmp_path: Path) -> None:
    file = tmp_path / "gpu-speed.json"
    program = importlib.import_module("gpu_check.__main__")
    command = [sys.executable, "-c", "raise SystemExit('no module')"]
    program.run_part(program.PARTS[5], 60.0, file, command)
    result = json.loads(file.read_text())
    assert result["error"] == "no module\nexit code 1"
    assert module("summary").wrong({"speed": result}) == ["speed: exit code 1"]


def test_the_wheel_that_is_carried_is_what_is_checked(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    wheel = dist / "spikelet-9.9.9-py3-none-any.whl"
    about = "spikelet-9.9.9.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("spikelet/__init__.py", "raise ImportError('this is the carried one')\n")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: spikelet\nVersion: 9.9.9\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{about}/WHEEL", tags)
        archive.writestr(f"{about}/RECORD", "")
    (dist / "COMMIT").write_text("abc1234\n")
    out = tmp_path / "out"
    done = check(
        "--dry", "--device", "cpu", "--wheel", str(dist), "--parts", "exact", "--out", str(out)
    )
    assert done.returncode == 1
    assert "this is the carried one" in json.loads((out / "gpu-exact.json").read_text())["error"]
    assert module("card").commit_of(wheel) == "abc1234"
    empty = check("--wheel", str(tmp_path), "--out", str(out))
    assert "run `make gpu-wheel` and carry dist" in empty.stderr


def test_the_command_line_explains_itself() -> None:
    listed = check("--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(PARTS)
    said = check("--help").stdout
    assert "PYTHONUNBUFFERED=1 python3 benches/gpu_check --wheel dist" in said
    assert "'fast' is none of machine" in check("--parts", "exact,fast").stderr


def test_the_card_is_asked_and_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = module("card")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert card.ask() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 143771 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert card.ask(("name", "driver_version", "memory.total"))["driver_version"] == "580.1"
    machine = {"card": card.ask(), "torch": "2.11", "cpu": "x", "cores": 16, "spikelet": "1"}
    assert card.line(machine).startswith("NVIDIA H200, driver 580.1, ")


def test_random_models_are_written_as_they_are_described(tmp_path: Path) -> None:
    models = module("models")
    for shape in models.TINY:
        folder = models.folder(shape, tmp_path, "cpu")
        assert models.folder(shape, tmp_path, "cpu") == folder
        model = spikelet.load(folder, device="cpu", threads=1)
        assert (model.dtype, model.config.hidden_size) == ("bf16", shape.hidden)
        assert model.state_bytes == models.state_bytes(shape)
        ids = np.random.default_rng(5).integers(0, shape.vocab, 200).tolist()
        density = np.asarray(model.trace(ids).relu2_density).mean()
        assert 0.2 < density < 0.4
    sizes = models.plan(models.RWKV4_7B)
    assert sum(int(np.prod(size)) for size in sizes.values()) > 7.3e9


def test_the_bound_of_a_pass_is_memory_or_arithmetic() -> None:
    speed, limits, models = module("speed"), module("limits"), module("models")
    shape = models.SPIKEGPT_216M
    given = {limits.READ: 4000.0, limits.FMA: 59e3, limits.DOT: 200e3, limits.TENSOR: 1e6}
    alone = speed.bound(shape, "bf16", given)
    assert alone == pytest.approx(1e-6 * 89, rel=0.05)
    assert speed.bound(shape, "bf16", given, rows=8) < 1.1 * alone
    many = speed.bound(shape, "bf16", given, rows=256)
    assert many == pytest.approx(2 * 256 * shape.weights_read / 59e12)
    assert speed.bound(shape, "bf16", {}, rows=8) is None


class FakeGraph:
    """Captures nothing, and does again what its decoder would."""

    decoder: Any = None

    def replay(self) -> None:
        self.decoder.greedy()


def test_torch_is_measured_as_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed, child, models = module("speed"), module("child"), module("models")
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda given: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch, "compile", lambda layer, **options: layer)
    context = child.Context("cpu", True, tmp_path, tmp_path, 60.0)
    monkeypatch.setattr(context, "has_graphs", lambda: True)
    shape = models.TINY[0]
    monkeypatch.setattr(FakeGraph, "decoder", speed.rivals(context, shape).torch(1))
    rows: list[dict[str, Any]] = []
    speed.decode(context, shape, 3, ("f32",), lambda **row: rows.append(row))
    assert [row["engine"] for row in rows] == ["spikelet f32", speed.EAGER, speed.GRAPH]
    assert rows[0]["against"]["peer"] in (speed.EAGER, speed.GRAPH)
    rows.clear()
    speed.compiled(context, shape, lambda **row: rows.append(row))
    assert [row["engine"] for row in rows] == ["spikelet bf16", speed.COMPILED]


def test_a_step_of_torch_is_the_same_as_a_graph_or_without(tmp_path: Path) -> None:
    decode, models = importlib.import_module("torch_decode"), module("models")
    shape = models.TINY[1]
    file = models.folder(shape, tmp_path, "cpu") / "model.safetensors"
    tensors = importlib.import_module("safetensors.torch").load_file(file)
    decoder = decode.TorchDecoder(tensors, 2, torch.float32, "cpu", spiking=False)
    first = decoder.generate(6)
    decoder.resize(2)
    decoder.graph = FakeGraph()
    decoder.graph.decoder = decoder
    assert decoder.generate(6) == first
    assert first[0][0] == first[0][1]


def test_differences_are_told_by_place() -> None:
    exact = module("exact")
    a = np.array([[1.0, 2.0], [0.0, np.nan]], np.float32)
    assert exact.difference(a, a.copy()) is None
    b = a.copy()
    b[1, 0] = -0.0
    assert (
        exact.difference(b, a)
        == "1 of 4 differ, first at [1, 0]: np.float32(-0.0), not np.float32(0.0)"
    )
    assert exact.difference(a[0], a) == "shape (2,), not (2, 2)"


def test_results_become_a_section_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = {"median": 2.0, "low": 1.0, "high": 3.0, "rounds": 5}
    row = {"model": "m", "engine": "spikelet bf16", "rows": 8, "tokens_per_second": figure}
    row |= {"share": figure, "against": {"peer": "torch", **figure}}
    unit = {"state": "done", "rows": [row]}
    result = {"machine": {"card": {"name": "NVIDIA X"}}, "finished": True, "units": {"a": unit}}
    (tmp_path / "gpu-speed.json").write_text(json.dumps(result))
    summary = module("summary")
    text = summary.render(summary.read(tmp_path), level=3)
    assert text.startswith("### NVIDIA GPU\n\nNVIDIA X, ")
    assert "| m | 8 | spikelet bf16 | 2 (1 to 3) | 200% | 2.00 (1.00 to 3.00) x torch |" in text
    table, harness = importlib.import_module("table"), importlib.import_module("harness")
    page = tmp_path / "README.md"
    page.write_text(f"head\n{table.BEGIN}\nold\n{table.END}\n")
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    table.main()
    assert "### NVIDIA GPU" in page.read_text()
