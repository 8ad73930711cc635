"""Training of language models: the loop, and what a run leaves behind."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    DataError,
    LanguageModelTrainer,
    LogFieldnames,
    SpikeGPTConfig,
    Trainer,
    TrainerConfig,
    runs,
    train_tokenizer,
)
from spikelet.training.data import load_tokenizer  # noqa: E402
from spikelet.training.trainer import optim  # noqa: E402
from training.tiny import (  # noqa: E402
    DOCUMENTS,
    text_file,
    tiny_config,
    tiny_data,
    tiny_model,
    tiny_trainer,
)


def rows(trainer: Trainer, name: str = "train_log.csv") -> list[dict[str, str]]:
    assert trainer.save_directory is not None
    with (trainer.save_directory / name).open(newline="") as file:
        return list(csv.DictReader(file))


def column(trainer: Trainer, name: str) -> list[str]:
    return [row[name] for row in rows(trainer)]


def test_t01_without_with_and_arguments_in_any_order(tmp_path: Path) -> None:
    text, tokenizer = text_file(tmp_path), train_tokenizer(DOCUMENTS, 300)
    trainers = [
        Trainer(tiny_model(), tokenizer=tokenizer, config=tiny_config(max_step=2, name="a")),
        Trainer(tiny_model(), tokenizer, tiny_config(max_step=2, name="b")),
        Trainer(tiny_model(), tiny_config(max_step=2, name="c"), tokenizer=tokenizer),
    ]
    for trainer in trainers:
        trainer.train(train_dataset=text)
    assert len({tuple(column(trainer, "train_loss")) for trainer in trainers}) == 1


def test_training_lowers_the_loss_and_leaves_a_model_folder(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_step=100, eval_step_interval=50, eval_iters=0)
    progress = trainer.train(text_file(tmp_path))
    assert (progress.step, progress.tokens, progress.windows) == (100, 3200, 200)
    losses = [float(value) for value in column(trainer, "train_loss")]
    assert losses[0] == pytest.approx(math.log(300), abs=0.4)
    assert losses[-1] < 2.5
    assert trainer.last_validation is not None
    assert trainer.last_validation.loss < 2.5
    model = spikelet.load(tmp_path / "run", threads=1)
    assert model.generate("Story", max_new_tokens=3, seed=1)
    names = {path.name for path in (tmp_path / "run" / "training").iterdir()}
    assert names == {
        "complete.pth", "config.json", "external_config.json", "layers.csv", "model.py",
        "tokenizer", "train_log.csv", "trainer_config.json",
    }  # fmt: skip


def test_t10_the_model_config_reloads(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert trainer.model_config_save_path is not None
    values = json.loads(trainer.model_config_save_path.read_text())
    assert SpikeGPTConfig(**values) == trainer.model.config
    assert trainer.trainer_config_save_path is not None
    assert TrainerConfig(**json.loads(trainer.trainer_config_save_path.read_text())) == (
        trainer.config
    )


def test_t11_the_tokenizer_reloads_with_the_same_ids(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert trainer.tokenizer_save_path is not None
    again = load_tokenizer(trainer.tokenizer_save_path)
    text = "Why does the dog sing? Ünïcode"
    assert again.encode(text) == trainer.tokenizer.encode(text, add_special_tokens=False).ids


def test_t13_checkpoints_by_interval_and_the_final_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_step_interval=8)
    trainer.train(text_file(tmp_path))
    names = {path.stem for path in runs.checkpoints(tmp_path / "run")}
    assert names == {"iter-8-ckpt", "iter-16-ckpt", "iter-20-ckpt", "complete"}
    trainer.save_pretrained()  # as scripts do: it is there already


def test_t14_what_a_checkpoint_holds(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_step=2)
    trainer.train(text_file(tmp_path))
    saved = torch.load(tmp_path / "run" / "training" / "complete.pth", weights_only=True)
    assert saved["model_class"] == "SpikeGPT"
    assert saved["current_step"] == 2
    assert set(saved["state_dict"]) == set(trainer.model.state_dict())
    assert set(saved["optimizer_state_dict"]["state"]) == set(saved["state_dict"])
    assert saved["progress"]["windows"] == 4
    assert set(saved["rng"]) == {"torch", "cuda", "numpy", "python"}


def test_t19_t22_validation_fills_its_columns(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, eval_step_interval=8, eval_iters=2, log_step_interval=5)
    data, _ = tiny_data(tmp_path)
    trainer.train(data)
    found = {int(row["step"]): row["val_loss"] for row in rows(trainer)}
    assert [step for step, value in found.items() if value] == [8, 16, 20]
    assert [step for step, value in found.items() if not value] == [5, 10, 15]
    assert float(rows(trainer)[-1]["val_bits_per_byte"]) == pytest.approx(
        float(found[20]) / math.log(2) * data.valid_sizes.tokens / data.valid_sizes.bytes, rel=1e-6
    )


def test_eval_iters_limits_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = tiny_data(tmp_path)
    counts = []
    for limit in (0, 3):
        trainer = tiny_trainer(tmp_path, name=f"run{limit}", eval_iters=limit)
        calls: list[int] = []
        hook = trainer.model.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        trainer.validate(data)
        hook.remove()
        counts.append(len(calls))
    assert counts == [math.ceil(((len(data.valid) - 1) // 16) / 2) + 1, 3]


def test_t20_only_the_columns_of_ones_own_dataclass(tmp_path: Path) -> None:
    trainer = Trainer(
        tiny_model(),
        tiny_config(max_step=2),
        tokenizer=train_tokenizer(DOCUMENTS, 300),
        log_fieldnames=LogFieldnames,
        root=tmp_path,
    )
    trainer.train(text_file(tmp_path))
    assert list(rows(trainer)[0]) == ["step", "train_loss", "val_loss"]


def test_t27_rates_of_a_run_by_steps_fall_to_the_last_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.train(text_file(tmp_path))
    found = [float(rate) for rate in column(trainer, "learning_rate")]
    assert max(found) == found[1] == pytest.approx(3e-3)  # 64 tokens of warm-up are two steps
    assert found[1:] == sorted(found[1:], reverse=True)
    assert found[-1] == pytest.approx(1e-5)


def test_t28_the_gradient_is_clipped(tmp_path: Path) -> None:
    """With a tiny limit and plain gradient descent a step is as long as rate times limit."""

    class Plain(LanguageModelTrainer):
        def _get_optimizer(self) -> Any:
            return torch.optim.SGD(self.model.parameters(), lr=1.0)

    limit, rate = 0.5, 0.1
    config = tiny_config(
        name=None, max_step=1, grad_norm_clip=limit, learning_rate=rate, lr_decay=False
    )
    trainer = Plain(tiny_model(), config, tokenizer=train_tokenizer(DOCUMENTS, 300))
    before = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()
    trainer.train(text_file(tmp_path))
    after = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
    assert float((after - before).norm()) == pytest.approx(limit * rate, rel=1e-3)


def test_max_tokens_is_the_length_of_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_tokens=100, max_step=2)
    assert trainer.max_step == 4  # of 32 tokens
    assert trainer.train(text_file(tmp_path)).tokens == 128


def test_gradient_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    found = []
    for options in ({"batch_size": 4}, {"grad_accumulation": 2}):
        model = tiny_model(dropout=0.0)
        name = str(len(found))
        trainer = tiny_trainer(tmp_path, model=model, max_step=3, name=name, **options)
        trainer.train(text_file(tmp_path))
        found.append(
            [float(row[key]) for row in rows(trainer) for key in ("train_loss", "grad_norm")]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("autocast", ["f32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_each_optimizer_and_type_learns(tmp_path: Path, optimizer: str, autocast: str) -> None:
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    trainer = tiny_trainer(tmp_path, optimizer=optimizer, autocast=autocast)
    trainer.train(text_file(tmp_path))
    found = [float(value) for value in column(trainer, "train_loss")]
    assert found[-1] < found[0] - 0.5


def test_which_parameters_decay() -> None:
    model = tiny_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, rest = optim.make_optimizer(model, TrainerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {names[p].split(".")[-2] for p in decayed["params"]} == {
        "key", "value", "receptance", "output", "head",
    }  # fmt: skip
    assert "emb.weight" in {names[p] for p in rest["params"]}


def test_muon_takes_the_matrices_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    if hasattr(torch.optim, "Muon"):
        found = optim.make_optimizer(model, TrainerConfig(optimizer="muon"))
        assert isinstance(found, optim.SeveralOptimizers)
        names = {parameter: name for name, parameter in model.named_parameters()}
        muon = {names[p] for group in found.parts[0].param_groups for p in group["params"]}
        assert all(name.startswith("blocks.") for name in muon)
        assert len(muon) == 2 * 7
        every = [p for group in found.param_groups for p in group["params"]]
        assert len(every) == len(set(every)) == len(names)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(OptionError, match=r"optimizer is 'muon'; torch .* has none, 2.9"):
        optim.make_optimizer(model, TrainerConfig(optimizer="muon"))


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_step_interval=4, keep_checkpoints=2)
    trainer.train(text_file(tmp_path))
    names = {path.stem for path in runs.checkpoints(tmp_path / "run")}
    assert names == {"iter-16-ckpt", "iter-20-ckpt", "complete"}


def test_of_checkpoints_by_time_the_newest_stays(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_step_interval=8, save_seconds=1e-9, max_step=12)
    trainer.train(text_file(tmp_path))
    names = {path.stem for path in runs.checkpoints(tmp_path / "run")}
    assert names == {"iter-8-ckpt", "iter-11-ckpt", "iter-12-ckpt", "complete"}


def test_the_pid_file_is_there_while_training(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_step=1)
    path = tmp_path / "run" / "training" / "pid"
    seen = []
    hook = trainer.model.register_forward_pre_hook(lambda *_: seen.append(path.read_text()))
    trainer.train(text_file(tmp_path))
    hook.remove()
    assert set(seen) == {str(os.getpid())}
    assert not path.exists()


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    config = SpikeGPTConfig(200, 16, "RWKV", 1, 16)
    model = type(tiny_model())(config)
    with pytest.raises(DataError, match=r"tokenizer has 300 tokens, the model's vocab_size is 200"):
        tiny_trainer(tmp_path, model=model).train(text_file(tmp_path))
    with pytest.raises(DataError, match="a tokenizer is needed"):
        Trainer(tiny_model(), tiny_config(name=None)).train(text_file(tmp_path))
