"""The examples run as they are, offline, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "SPIKELET_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *words],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "home" / "runs").iterdir())


def test_every_example_is_described_and_tested() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    page = (EXAMPLES / "README.md").read_text()
    described = set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE))
    assert files == described
    assert all(name in Path(__file__).read_text() for name in files)


def test_d01_quick_start(tmp_path: Path) -> None:
    done = run("quick_start.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The fox met the ")
    assert "sang until the moon" in done.stdout
    assert len(runs(tmp_path)) == 1


def test_p09_the_whole_script_trains_and_then_writes(tmp_path: Path) -> None:
    done = run("spikegpt.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("parser.add")
    assert len(done.stdout) > 30
    folder = tmp_path / "home" / "runs" / "GPT-1" / "training"
    assert {path.stem for path in folder.glob("*.pth")} == {
        "iter-50-ckpt", "iter-100-ckpt", "complete",
    }  # fmt: skip
    assert not (folder / "pid").exists()
    # Once more under the same name, with more steps: it goes on.
    again = run("spikegpt.py", tmp_path, "--steps", "110")
    assert again.returncode == 0, again.stderr
    assert (folder / "iter-110-ckpt.pth").exists()
    assert "step 1/" not in again.stderr


def test_p06_a_model_of_ones_own(tmp_path: Path) -> None:
    done = run("integrate_a_model.py", tmp_path)
    assert done.returncode == 0, done.stderr
    x, prediction = (
        [float(n) for n in re.findall(r"-?\d+\.\d+", line)] for line in done.stdout.splitlines()
    )
    assert prediction == pytest.approx([n + 1 for n in x], abs=0.3)
    (folder,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in (folder / "training").iterdir()}
    assert {"iter-250-ckpt.pth", "iter-500-ckpt.pth", "config.json", "trainer_config.json"} <= names
    log = (folder / "training" / "train_log.csv").read_text().splitlines()
    assert log[0] == "step,train_loss,val_loss"
    assert sum(line.endswith(",") for line in log) >= 50  # rows of training
    assert sum(",," in line for line in log) == 5  # rows of validation


@pytest.mark.parametrize("draft", ["prophet", "model"])
def test_r12_r17_a_pair_trains_and_writes_both_ways(tmp_path: Path, draft: str) -> None:
    small = "--dim 16 --depth 1 --prophet-dim 8 --prophet-depth 1 --batch-size 2 --gamma 3"
    short = "--num-batches 3 --seq-len 32 --generate-every 2 --prime-length 16"
    words = f"{small} {short} --generate-length 40 --draft {draft} --out pair".split()
    done = run("train_prophet.py", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^training loss: \d\.\d{3}$", done.stdout, re.MULTILINE)) == 3
    assert done.stdout.count("*" * 100) == 2
    for way in ("base", "spec"):
        assert done.stdout.count(f"\n{way} decoding:\n") == 2
        assert len(re.findall(rf"{way} decoding in: \d+\.\d{{3}}ms", done.stdout)) == 2
    accepted = re.findall(r"average num accepted: (\d\.\d) / 3", done.stdout)
    assert len(accepted) == 2
    assert all(0 <= float(mean) <= 3 for mean in accepted)
    assert done.stdout.endswith("the same text\n")
    assert (tmp_path / "pair" / "prophet" / "config.json").exists() == (draft == "prophet")
