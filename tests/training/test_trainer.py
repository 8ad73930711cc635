"""The loop: schedule, resume to the last bit, signals, what a run leaves behind."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from spikelet.training import TrainerConfig, TrainingError  # noqa: E402
from spikelet.training.trainer import Trainer, checkpoints, learning_rate  # noqa: E402
from training.tiny import tiny_trainer  # noqa: E402


def losses(trainer: Trainer) -> dict[int, str]:
    with trainer.log_path.open(newline="") as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


def test_cosine_schedule_at_its_points() -> None:
    config = TrainerConfig(learning_rate=1.0, min_lr_ratio=0.1, warmup_tokens=100, max_tokens=1100)
    rates = [learning_rate(config, tokens) for tokens in (0, 50, 100, 600, 1100, 5000)]
    assert rates == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])


def test_trapezoid_schedule_at_its_points() -> None:
    config = TrainerConfig(
        learning_rate=1.0, min_lr_ratio=0.0, warmup_tokens=100, max_tokens=1000,
        schedule="trapezoid", decay_share=0.4,
    )  # fmt: skip
    rates = [learning_rate(config, tokens) for tokens in (50, 100, 600, 800, 1000, 2000)]
    assert rates == pytest.approx([0.5, 1, 1, 0.5, 0, 0])


def test_training_lowers_the_loss_and_writes_everything(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=6400, eval_interval=100, sample_tokens=5)
    progress = trainer.run()
    assert (progress.step, progress.tokens, progress.windows) == (200, 6400, 400)
    found = losses(trainer)
    assert float(found[1]) == pytest.approx(math.log(300), abs=0.3)
    assert float(found[200]) < 2.5
    assert trainer.last_validation is not None
    assert trainer.last_validation.loss < 2.5
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000200"]
    assert (trainer.folder / "samples.txt").read_text().startswith("--- step 100\nOnce upon a time")
    assert json.loads((trainer.folder / "config.json").read_text())["trainer"]["seed"] == 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"grad_accumulation": accumulation, "log_interval": 2, "save_seconds": 0.0}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.run()

    class KilledError(Exception):
        pass

    first = tiny_trainer(tmp_path / "parts", **options)
    step = first._step

    def step_until_killed() -> tuple[float, float, float]:
        if first.progress.step == 7:
            step()  # lost: its checkpoint was never written
            raise KilledError
        return step()

    monkeypatch.setattr(first, "_step", step_until_killed)
    with pytest.raises(KilledError):
        first.run()
    (first.folder / ".saving-half").mkdir()
    torch.manual_seed(99)  # another process: nothing may hang on what was drawn here
    second = tiny_trainer(tmp_path / "parts", **options)
    assert second.resume()
    assert second.progress.step == 7
    assert not (second.folder / ".saving-half").exists()
    second.run()
    expected, found = losses(whole), losses(second)
    assert found == expected
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[k]) for k, value in whole.model.state_dict().items())


def test_gradient_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    norms = []
    for name, options in {"a": {"batch_size": 4}, "b": {"grad_accumulation": 2}}.items():
        trainer = tiny_trainer(tmp_path / name, **options)
        trainer.model.config.dropout = 0.0
        for block in trainer.model.blocks:
            block.dropout.p = 0.0
        loss, norm, _ = trainer._step()
        norms.append((loss, norm))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    step = trainer._step

    def step_and_kill() -> tuple[float, float, float]:
        if trainer.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    trainer._step = step_and_kill  # type: ignore[method-assign]
    handler = signal.getsignal(signal.SIGTERM)
    assert trainer.run().step == 5
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000005"]


def test_log_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=5 * 32)
    trainer.run()
    with trainer.log_path.open("a") as file:
        file.write("9,288,1.0,5.0,0.001,1.0,100,,\n")
    assert tiny_trainer(tmp_path).resume()
    assert sorted(losses(trainer)) == [1, 2, 3, 4, 5]


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=3 * 32)
    trainer.run()
    (trainer.folder / ".saving-abc").mkdir()
    (trainer.folder / "step-00000004").mkdir()
    (trainer.folder / "step-00000004" / "model.safetensors").write_bytes(b"half")
    (trainer.folder / "step-00000099").mkdir()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    trainer._step()
    assert (trainer.save() / "state.json").exists()
    shutil.rmtree(trainer.folder / "step-00000004")
    torn = trainer.folder / "step-00000003" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(TrainingError, match="step-00000003: not a whole checkpoint"):
        tiny_trainer(tmp_path).resume()


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=3 * 32)
    trainer.run()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spikelet.training.trainer.save_file", full)
    trainer._step()
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert not list(trainer.folder.glob(".saving-*"))


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, keep_checkpoints=2)
    for _ in range(4):
        trainer._step()
        trainer.save()
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["step-00000003", "step-00000004"]


def test_nan_stops_the_run_and_names_the_way_back(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer._step()
    trainer.save()
    with torch.no_grad():
        trainer.model.ln_out.weight[0] = math.nan
    with pytest.raises(TrainingError, match=r"step 2: loss nan.*Resume from .*step-00000001"):
        trainer._step()


def test_resume_refuses_another_seed(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=64)
    trainer.run()
    with pytest.raises(TrainingError, match="seed was 0, now 1"):
        tiny_trainer(tmp_path, seed=1).resume()


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    assert not tiny_trainer(tmp_path).resume()


@pytest.mark.parametrize("autocast", ["f32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_each_optimizer_and_type_learns(tmp_path: Path, optimizer: str, autocast: str) -> None:
    trainer = tiny_trainer(tmp_path, optimizer=optimizer, autocast=autocast)
    trainer.run()
    found = losses(trainer)
    assert float(found[20]) < float(found[1]) - 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"decay_share": 0.0}, "decay_share is 0.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)  # type: ignore[arg-type]


def test_the_run_can_be_moved(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "a", max_tokens=64)
    trainer.run()
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert tiny_trainer(tmp_path / "b").resume()
