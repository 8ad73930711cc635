"""Options of the language models' trainer, each shown to do what it says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import RWKV4, LanguageModelTrainer, RWKV4Config, SpikeGPT  # noqa: E402
from spikelet.training.data import Streams  # noqa: E402
from training.tiny import text_file, tiny_data, tiny_model, tiny_trainer  # noqa: E402

STILL = {"learning_rate": 1e-30, "lr_decay": False}
"""Rates at which weights do not change."""


def column(trainer: LanguageModelTrainer, name: str = "train_loss") -> list[float]:
    assert trainer.save_directory is not None
    with (trainer.save_directory / "train_log.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def trained(folder: Path, model: SpikeGPT | None = None, **options: Any) -> LanguageModelTrainer:
    trainer = tiny_trainer(folder, model=model or tiny_model(dropout=0.0), **options)
    trainer.train(text_file(folder.parent))
    return trainer


def firing_model() -> SpikeGPT:
    """A model whose neurons fire from the beginning."""
    model = tiny_model(dropout=0.0)
    with torch.no_grad():
        for block in model.blocks:
            for part in (block.att, block.ffn):
                for matrix in (part.key, part.value, part.receptance):
                    matrix.weight.normal_()
            block.att.output.weight.normal_()
    return model


def test_carry_state_hands_the_state_on(tmp_path: Path) -> None:
    """With weights that stay, each loss is that of a window behind the state of the one before."""
    data, _ = tiny_data(tmp_path)
    model = firing_model()
    options = {"batch_size": 8, **STILL}
    trainer = tiny_trainer(tmp_path, model=model, carry_state=True, max_step=25, **options)
    trainer.train(data)
    streams = Streams(data.train, 16, 8, 0)
    assert streams.per_epoch < 24  # so that the beginning of an epoch is among the steps
    expected, state = [], None
    with torch.no_grad():
        for step in range(25):
            if streams.begins(8 * step):
                state = None
            loss, state = model.step_loss(*streams.batch(8 * step, 8), state)
            expected.append(float(loss))
    assert column(trainer) == pytest.approx(expected, rel=1e-5)
    fresh = trained(tmp_path / "fresh", firing_model(), max_step=4, **options)
    assert column(fresh)[1:] != pytest.approx(expected[1:4], rel=1e-5)


def test_carry_state_needs_the_same_rows_on_resume(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    tiny_trainer(tmp_path, carry_state=True, max_step=3).train(text)
    again = tiny_trainer(tmp_path, carry_state=True, batch_size=3, resume="run")
    with pytest.raises(RuntimeError, match="batch_size was 2, now 3"):
        again.train(text)


def test_gradient_checkpointing_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spikelet.training.models import language_model

    calls = []
    checkpoint = language_model.checkpoint

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return checkpoint(*args, **options)

    monkeypatch.setattr(language_model, "checkpoint", spy)
    usual = trained(tmp_path / "usual", max_step=4)
    assert not calls
    spared = trained(tmp_path / "spared", max_step=4, gradient_checkpointing=True)
    assert len(calls) == 4 * 2  # steps times blocks, and none in validation
    assert column(spared) == pytest.approx(column(usual), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.compile, []

    def compile_quickly(module: Any) -> Any:
        calls.append(module)
        return real(module, backend="aot_eager")  # without the C++ compiler, which takes minutes

    monkeypatch.setattr(torch, "compile", compile_quickly)
    usual = trained(tmp_path / "usual", max_step=4)
    assert not calls
    compiled = trained(tmp_path / "compiled", max_step=4, compile=True)
    assert len(calls) == 1
    assert column(compiled) == pytest.approx(column(usual), rel=1e-4)
    assert list(compiled.model.state_dict()) == list(usual.model.state_dict())


def test_the_penalty_lowers_the_firing_rate_and_stays_out_of_the_log(tmp_path: Path) -> None:
    options = {"max_step": 60, "lr_decay": False, "learning_rate": 3e-3}
    usual = trained(tmp_path / "usual", firing_model(), **options)
    fined = trained(tmp_path / "fined", firing_model(), spike_rate_penalty=20.0, **options)
    rates = [column(trainer, "firing_rate") for trainer in (usual, fined)]
    assert rates[0][0] == rates[1][0] > 0.02
    assert rates[1][-1] < 0.7 * rates[0][-1]
    assert column(fined)[0] == column(usual)[0]


def test_bf16_is_used_in_training_and_validation(tmp_path: Path) -> None:
    seen: set[tuple[bool, bool]] = set()
    for name, autocast in (("a", "f32"), ("b", "bf16")):
        model = tiny_model(dropout=0.0)
        model.head.register_forward_pre_hook(lambda *_: None)
        model.ln_out.register_forward_hook(
            lambda module, *_: seen.add((module.training, torch.is_autocast_enabled("cpu")))
        )
        trained(tmp_path / name, model, max_step=2, autocast=autocast)
    assert seen == {(True, False), (False, False), (True, True), (False, True)}


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_prepared_ahead_are_the_same(tmp_path: Path, workers: int) -> None:
    usual = trained(tmp_path / "usual")
    ahead = trained(tmp_path / "ahead", num_workers=workers)
    assert column(ahead) == column(usual)


def test_rwkv4_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = RWKV4(RWKV4Config(300, 16, 2, 24))
    trainer = trained(tmp_path, model, max_step=30)
    losses = column(trainer)
    assert losses[-1] < losses[0] - 0.5
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == "rwkv4"


def test_checkpointing_of_a_model_without_it_is_refused(tmp_path: Path) -> None:
    class Plain(torch.nn.Linear):
        config = type("Config", (), {"ctx_len": 4})()

    from training.tiny import tiny_config

    config = tiny_config(name=None, gradient_checkpointing=True)
    with pytest.raises(OptionError, match="gradient_checkpointing: Plain has no such attribute"):
        LanguageModelTrainer(Plain(2, 2), config)
