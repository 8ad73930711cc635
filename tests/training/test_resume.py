"""Nothing is lost: kill -9, signals, full disks, and runs that go on as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from spikelet.training import LanguageModelTrainer, Trainer, TrainingError, runs  # noqa: E402
from spikelet.training.trainer import checkpoint as files  # noqa: E402
from spikelet.training.trainer.step import Stepper  # noqa: E402
from training.tiny import (  # noqa: E402
    DOCUMENTS,
    text_file,
    tiny_config,
    tiny_model,
    tiny_trainer,
)

# Processes that import torch are slow to start on a busy machine.
pytestmark = pytest.mark.timeout(300)
TESTS = Path(__file__).parent.parent
TIMES = ("seconds", "tokens_per_second")


def rows(folder: Path, name: str = "train_log.csv") -> list[dict[str, str]]:
    """All that is the same in two equal runs."""
    with (folder / "run" / "training" / name).open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def stems(folder: Path) -> list[str]:
    return [path.stem for path in runs.checkpoints(folder / "run")]


def assert_equal_runs(found: LanguageModelTrainer, expected: LanguageModelTrainer) -> None:
    folders = [trainer.root for trainer in (found, expected)]
    for name in ("train_log.csv", "layers.csv"):
        assert rows(folders[0], name) == rows(folders[1], name)
    weights = found.model.state_dict()
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


class KilledError(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the run fail in the middle of its step number ``step``."""
    update, steps = Stepper.update, [0]

    def counted(self: Stepper, rate: float, norm: float) -> None:
        steps[0] += 1
        if steps[0] == step:
            raise KilledError
        update(self, rate, norm)

    monkeypatch.setattr(Stepper, "update", counted)


# Killed and resumed


@pytest.mark.parametrize("write", [None, 2, 3])
def test_kill_9_at_any_moment_loses_nothing(tmp_path: Path, write: int | None) -> None:
    """``write``: killed in the middle of that checkpoint; None: at a random moment."""
    options = {"save_step_interval": 7, "log_step_interval": 2, "max_step": 40, "save_seconds": 0}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train(text_file(tmp_path))
    words = [tmp_path / "parts", text_file(tmp_path), json.dumps(options)]
    words += [] if write is None else [str(write)]
    process = subprocess.Popen(
        [sys.executable, TESTS / "training" / "killed_run.py", *words], stderr=subprocess.PIPE
    )
    if write is None:
        log = tmp_path / "parts" / "run" / "training" / "train_log.csv"
        wanted = random.randint(2, 15)  # not the same moment in any two runs of this test
        while not log.exists() or len(log.read_text().splitlines()) < wanted:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.001)
        process.kill()
    _, error = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGKILL, error.decode()
    remains = list((tmp_path / "parts" / "run" / "training").glob(".*.tmp"))
    if write is not None:
        assert stems(tmp_path / "parts") == [f"iter-{7 * n}-ckpt" for n in range(1, write)]
        assert len(remains) == 1
    second = tiny_trainer(tmp_path / "parts", resume="run", **options)
    second.train(text_file(tmp_path))
    assert_equal_runs(second, whole)
    assert set(stems(tmp_path / "parts")) == set(stems(tmp_path / "whole"))
    assert not list((tmp_path / "parts" / "run" / "training").glob(".*.tmp"))


@pytest.mark.parametrize(
    "options",
    [
        {"grad_accumulation": 2},
        {"optimizer": "muon"},
        {"carry_state": True},
        {"num_workers": 2},
        {"eval_step_interval": 3, "sample_tokens": 4},
        {"spike_rate_penalty": 0.1, "log_step_interval": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_t16_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("optimizer") == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    text, options = text_file(tmp_path), {"save_step_interval": 7, **options}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train(text)
    first = tiny_trainer(tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        kill_at(patch, 12)
        with pytest.raises(KilledError):
            first.train(text)
    torch.manual_seed(99)  # another process: nothing may hang on what was drawn here
    random.random()
    second = tiny_trainer(tmp_path / "parts", resume="run", **options)
    assert second.progress.step == 7
    second.train(text)
    assert_equal_runs(second, whole)
    samples = [folder / "run" / "training" / "samples.jsonl" for folder in (first.root, whole.root)]
    if options.get("sample_tokens"):
        assert samples[0].read_text() == samples[1].read_text()


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_file(tmp_path)
    whole = tiny_trainer(tmp_path / "whole")
    whole.train(text)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(KilledError):
            tiny_trainer(tmp_path / "parts").train(text)
    second = tiny_trainer(tmp_path / "parts", resume="run")
    second.train(text)
    assert_equal_runs(second, whole)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    text, options = text_file(tmp_path), {"lr_decay": False}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train(text)
    tiny_trainer(tmp_path / "parts", max_step=8, **options).train(text)
    assert stems(tmp_path / "parts") == ["complete"]
    tiny_trainer(tmp_path / "parts", max_step=8, resume="run", **options).train(text)
    assert stems(tmp_path / "parts") == ["complete"]  # there was nothing left to do
    second = tiny_trainer(tmp_path / "parts", resume="run", **options)
    second.train(text)
    assert stems(tmp_path / "parts") == ["iter-8-ckpt", "complete"]
    losses = [[r["train_loss"] for r in rows(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    tiny_trainer(tmp_path, save_step_interval=5).train(text)
    second = tiny_trainer(
        tmp_path, save_step_interval=5, resume="run:iter-10-ckpt", learning_rate=1e-3
    )
    assert second.progress.step == 10
    assert stems(tmp_path) == ["iter-5-ckpt", "iter-10-ckpt"]
    aside = {path.name[:9] for path in (tmp_path / "run/training/superseded").iterdir()}
    assert aside == {"iter-15-c", "iter-20-c", "complete-"}
    second.train(text)
    assert stems(tmp_path)[-1] == "complete"
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(1, 21))


def test_log_rows_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    tiny_trainer(tmp_path, max_step=5).train(text)
    log = tmp_path / "run" / "training" / "train_log.csv"
    whole = log.read_text()
    log.write_text(whole + whole.splitlines()[-1].replace("5,", "6,", 1) + "\n7,22")
    tiny_trainer(tmp_path, resume="run")
    assert log.read_text().splitlines() == whole.splitlines()


def test_t17_a_new_name_takes_the_weights_only(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    first = tiny_trainer(tmp_path)
    first.train(text)
    second = tiny_trainer(tmp_path, name="next", resume="run", optimizer="adam", seed=3)
    assert second.progress.step == 0
    weights = first.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in second.model.state_dict().items())
    second.train(text)
    assert second.progress.step == 20


def test_t08_a_checkpoint_of_darwinkit_starts_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with weights, step and moments by index, in a flat folder."""
    monkeypatch.delenv("SPIKELET_HOME")
    monkeypatch.setenv("DARWIN_KIT_HOME", str(tmp_path))
    model = tiny_model()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    optimizer.step()
    folder = tmp_path / "models" / "lm" / "theirs"
    folder.mkdir(parents=True)
    content = {
        "model_class": "SpikeGPT",
        "state_dict": model.state_dict(),
        "current_step": 40,
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(content, folder / "iter-40-ckpt.pth")
    config = tiny_config(name="ours", max_step=2)
    from spikelet.training import train_tokenizer

    tokenizer = train_tokenizer(DOCUMENTS, 300)
    other = tiny_model()
    with torch.no_grad():
        other.head.weight.zero_()
    trainer = Trainer(other, tokenizer, config, resume="theirs:iter-40-ckpt")
    assert torch.equal(trainer.model.head.weight, model.head.weight)
    assert trainer.train(text_file(tmp_path)).step == 2
    again = torch.optim.Adam(tiny_model().parameters())
    files.restore_optimizer(again, tiny_model(), content["optimizer_state_dict"])
    assert len(again.state_dict()["state"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1: a run that goes on must keep it"),
        ({"optimizer": "adam"}, "optimizer was 'adamw', now 'adam'"),
        ({"carry_state": True}, "carry_state was False, now True"),
    ],
)
def test_what_a_resumed_run_must_keep(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    tiny_trainer(tmp_path, max_step=2).train(text_file(tmp_path))
    with pytest.raises(TrainingError, match=message):
        tiny_trainer(tmp_path, resume="run", **options)


def test_resume_into_another_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    from spikelet.training import SpikeGPT, SpikeGPTConfig, train_tokenizer

    tiny_trainer(tmp_path, max_step=2).train(text_file(tmp_path))
    model = SpikeGPT(SpikeGPTConfig(300, 16, "RWKV", 1, 24))
    with pytest.raises(TrainingError, match=r"(?s)complete.pth does not fit the model.*blocks\.1"):
        tiny_trainer(tmp_path, resume="run", model=model)
    longer = SpikeGPT(SpikeGPTConfig(300, 32, "RWKV", 2, 24))
    with pytest.raises(TrainingError, match="ctx_len was 16, now 32"):
        tiny_trainer(tmp_path, resume="run", model=longer)
    other = train_tokenizer(DOCUMENTS[:3], 290)
    with pytest.raises(TrainingError, match="tokenizer was"):
        Trainer(tiny_model(), other, tiny_config(), resume="run", root=tmp_path)


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, max_step=2).train(text_file(tmp_path))
    path = tmp_path / "run" / "training" / "complete.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"complete\.pth: not a whole checkpoint"):
        tiny_trainer(tmp_path, resume="run")


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    tiny_trainer(tmp_path, max_step=2).train(text_file(tmp_path))
    path = tmp_path / "run" / "training" / "complete.pth"
    torch.save({"state_dict": {}, "current_step": 1, "extra": Evil()}, path)
    with pytest.raises(TrainingError, match="not a whole checkpoint"):
        tiny_trainer(tmp_path, resume="run")
    assert not (tmp_path / "owned").exists()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    words = ["train", text_file(tmp_path), "--out", tmp_path / "run", "--threads=1"]
    words += ["--tokenizer=bytes", "--n-layer=1", "--n-embd=16", "--ctx-len=16"]
    words += ["--max-step=1000000", "--save-step-interval=0", "--device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spikelet", *map(str, words)], stderr=subprocess.PIPE
    )
    log = tmp_path / "run" / "training" / "train_log.csv"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=250)
    assert process.returncode == 130, error.decode()
    name = signal.Signals(number).name
    assert f"{name}: the run ends after this step, with a checkpoint" in error.decode()
    last = rows(tmp_path)[-1]["step"]
    assert stems(tmp_path) == [f"iter-{last}-ckpt"]
    saved = files.read_checkpoint(runs.find_checkpoint(tmp_path / "run"))
    assert saved["progress"]["step"] == int(last)
    assert not runs.read_run(tmp_path / "run").running


def test_a_signal_ends_train_and_leaves_the_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, steps = Stepper.update, [0]

    def signalled(self: Stepper, rate: float, norm: float) -> None:
        steps[0] += 1
        if steps[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, rate, norm)

    monkeypatch.setattr(Stepper, "update", signalled)
    handler = signal.getsignal(signal.SIGTERM)
    trainer = tiny_trainer(tmp_path)
    trainer.train(text_file(tmp_path))
    assert trainer.interrupted
    assert signal.getsignal(signal.SIGTERM) is handler
    assert stems(tmp_path) == [f"iter-{trainer.progress.step}-ckpt"]
    assert trainer.progress.step in (5, 6)


# Disks


def test_a_file_that_cannot_grow_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """The system's limit on file sizes stands in for a disk that becomes full."""
    trainer = tiny_trainer(tmp_path, save_step_interval=5, max_step=12)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer._save

    def limited(checkpoint: str, step: int) -> Path | None:
        if step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        return save(checkpoint, step)

    trainer._save = limited  # type: ignore[method-assign]
    try:
        message = r"iter-10-ckpt\.pth cannot be written: File too large; [\d.,]+ MB are free in"
        with pytest.raises(TrainingError, match=message):
            trainer.train(text_file(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stems(tmp_path) == ["iter-5-ckpt"]
    assert not list((tmp_path / "run" / "training").glob(".*"))
    assert files.read_checkpoint(runs.find_checkpoint(tmp_path / "run"))["current_step"] == 5
    assert "cannot be written" in (tmp_path / "run" / "training" / "exception.log").read_text()


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    (tmp_path / f".x.pth.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"x\.pth cannot be written: the disk is full; .* free"):
        files.write_checkpoint(tmp_path / "x.pth", {"weights": torch.zeros(10_000)})
    assert list(tmp_path.iterdir()) == []
    log = tmp_path / "train_log.csv"
    log.symlink_to("/dev/full")
    from spikelet.training.trainer.log import CSVLogger

    with pytest.raises(TrainingError, match=r"train_log\.csv cannot be written: the disk is full"):
        CSVLogger(log, ["step"]).log({"step": 1})
