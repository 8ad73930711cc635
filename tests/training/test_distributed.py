"""Two processes on CPUs that train one model, as several GPUs would."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from spikelet.training import TrainingError, runs  # noqa: E402
from spikelet.training.trainer.batches import Batches  # noqa: E402
from spikelet.training.trainer.distributed import World  # noqa: E402
from training.tiny import text_file, tiny_model, tiny_trainer  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this torch has no gloo",
    ),
    pytest.mark.timeout(300),  # processes that import torch are slow to start on a busy machine
]
SCRIPT = Path(__file__).parent / "rank_run.py"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "training" / "train_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_two(folder: Path, task: str) -> None:
    """Start both with the variables that clusters set, and wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder, text_file(folder), task],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=250)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "step" in errors[0]
    assert "step" not in errors[1]  # only the first speaks


def test_t29_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    run_two(tmp_path, "equal")
    single = tiny_trainer(
        tmp_path / "single",
        model=tiny_model(dropout=0.0),
        batch_size=4,
        eval_step_interval=10,
        lr_decay=False,
        learning_rate=1e-3,
    )
    single.train(text_file(tmp_path))
    expected, found = rows(tmp_path / "single" / "run"), rows(tmp_path / "run")
    assert len(found) == len(expected) == 20
    for name in ("step", "tokens"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    for name in ("train_loss", "learning_rate"):
        values = [[float(row[name]) for row in log] for log in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name
    validated = [[float(r["val_loss"]) for r in log if r["val_loss"]] for log in (found, expected)]
    assert len(validated[0]) == 2
    assert validated[0] == pytest.approx(validated[1], rel=1e-4)
    assert (tmp_path / "weights0").read_text() == (tmp_path / "weights1").read_text()


def test_two_processes_resume_to_the_last_bit(tmp_path: Path) -> None:
    """With dropout, so that the random states of both must come back."""
    run_two(tmp_path, "resume")
    losses = [[r["train_loss"] for r in rows(tmp_path / n / "run")] for n in ("whole", "parts")]
    assert len(losses[0]) == 20
    assert losses[0] == losses[1]


def test_a_signal_to_one_stops_all_with_one_checkpoint(tmp_path: Path) -> None:
    run_two(tmp_path, "stop")
    steps = {(tmp_path / f"step{rank}").read_text() for rank in range(2)}
    assert len(steps) == 1
    stems = [path.stem for path in runs.checkpoints(tmp_path / "run")]
    assert stems == [f"iter-{steps.pop()}-ckpt"]


def test_t29_the_command_starts_its_processes(tmp_path: Path) -> None:
    words = ["train", text_file(tmp_path), "--out", tmp_path / "run", "--device-num=2"]
    words += ["--vocab-size=280", "--n-layer=1", "--n-embd=16", "--ctx-len=16", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "spikelet", *map(str, words), "--max-step=3", "--threads=1"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [row["tokens"] for row in rows(tmp_path / "run")] == ["64", "128", "192"]


def test_several_devices_need_several_processes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"device_num is 2.*torchrun --nproc_per_node=2"):
        tiny_trainer(tmp_path, device_num=2)


@pytest.mark.parametrize("ahead", [0, 3])
def test_processes_share_the_windows_of_a_step(ahead: int) -> None:
    class Numbers:
        def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            ids = torch.arange(first, first + count)
            return ids, ids

    device = torch.device("cpu")
    whole = Batches(Numbers(), 6, World(), device)
    parts = [Batches(Numbers(), 3, World(rank, 2), device, ahead) for rank in range(2)]
    for position in (0, 6, 12, 60):  # after a jump, too
        found = torch.cat([part.get(position)[0] for part in parts])
        assert torch.equal(found, whole.get(position)[0])
    for part in parts:
        part.close()
