"""Training a prophet: runs, resume, export, the command, and training along with the model."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from spikelet.cli import train_prophet  # noqa: E402
from spikelet.errors import FormatError, OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    JointTrainer,
    LanguageModelTrainer,
    ModelWithProphet,
    Prophet,
    ProphetConfig,
    ProphetTrainer,
    ProphetTrainerConfig,
    TrainingError,
    export_model,
    export_prophet,
    load_prophet,
    load_target,
)
from spikelet.training.data import train_tokenizer  # noqa: E402
from spikelet.training.prophet.export import fingerprint  # noqa: E402
from spikelet.training.prophet.samples import own_data  # noqa: E402
from training.tiny import DOCUMENTS, text_file, tiny_config, tiny_data, tiny_model  # noqa: E402


def model_folder(folder: Path, dtype: str = "f32") -> Path:
    export_model(tiny_model(), folder, train_tokenizer(DOCUMENTS, 300), dtype)
    return folder


def tiny_shape(**options: Any) -> ProphetConfig:
    return ProphetConfig(**({"n_embd": 8, "draft_vocab": 50, "ctx_len": 16} | options))


def prophet_trainer(folder: Path, resume: str | None = None, **options: Any) -> ProphetTrainer:
    config = ProphetTrainerConfig(
        **{
            "name": "prophet",
            "device": "cpu",
            "batch_size": 2,
            "max_step": 10,
            "num_steps": 2,
            "log_step_interval": 1,
            "valid_every": 10,
            **options,
        }
    )
    target = load_target(folder)
    torch.manual_seed(5)
    prophet = Prophet(tiny_shape(), target.config)
    prophet.start_from(target)
    prophet.model_fingerprint = fingerprint(folder / "model.safetensors")
    return ProphetTrainer(target, prophet, config, root=folder, resume=resume)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_a_prophet_and_a_log(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    data, _ = tiny_data(tmp_path)
    trainer = prophet_trainer(folder, max_step=30, learning_rate=1e-2, eval_step_interval=10)
    trainer.train(data)
    assert (folder / "model.safetensors").read_bytes() == before
    config = json.loads((folder / "prophet" / "config.json").read_text())
    assert config["model_type"] == "prophet"
    assert (config["hidden_size"], config["target_hidden_size"]) == (8, 24)
    assert (config["vocab_size"], config["draft_vocab_size"]) == (300, 50)
    assert config["model_sha256"] == hashlib.sha256(before).hexdigest()
    log = rows_of(folder / "prophet" / "training" / "train_log.csv")
    assert len(log) == 30
    losses = [float(row["train_loss"]) for row in log]
    assert sum(losses[-5:]) < sum(losses[:5])
    accepted = rows_of(folder / "prophet" / "training" / "acceptance.csv")
    assert [row["step"] for row in accepted] == ["10", "20", "30"]
    assert 0 < float(accepted[-1]["t0.8_1"]) <= 1
    assert float(accepted[-1]["t1_so_far_2"]) <= float(accepted[-1]["t1_1"])
    # What was written is what was trained.
    loaded = load_prophet(folder, load_target(folder))
    for name, value in trainer.prophet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    data, _ = tiny_data(tmp_path)
    whole = prophet_trainer(model_folder(tmp_path / "a"), lr_decay=False)
    whole.train(data)
    folder = model_folder(tmp_path / "b")
    prophet_trainer(folder, max_step=4, lr_decay=False).train(data)
    rest = prophet_trainer(folder, resume="prophet", lr_decay=False)
    assert rest.current_step == 4
    rest.train(data)
    for name, value in whole.prophet.state_dict().items():
        assert torch.equal(rest.prophet.state_dict()[name], value), name
    logs = [rows_of(f / "prophet" / "training" / "train_log.csv") for f in (tmp_path / "a", folder)]
    assert [r["train_loss"] for r in logs[0]] == [r["train_loss"] for r in logs[1]]
    steps = [r["step"] for r in rows_of(folder / "prophet" / "training" / "acceptance.csv")]
    assert steps == ["4", "10"]


def test_a_run_does_not_go_on_with_another_model(tmp_path: Path) -> None:
    data, _ = tiny_data(tmp_path)
    folder = model_folder(tmp_path / "model")
    trainer = prophet_trainer(folder, max_step=2)
    trainer.train(data)
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    export_model(model, folder, train_tokenizer(DOCUMENTS, 300))
    with pytest.raises(TrainingError, match=r"has learned from model .*, but this is model"):
        prophet_trainer(folder, resume="prophet", max_step=4)
    with pytest.raises(OptionError, match=r"the prophet is for model .* holds model"):
        export_prophet(trainer.prophet, folder)
    with pytest.raises(FormatError, match=r"the prophet is for model .* this is model"):
        load_prophet(folder, load_target(folder))


def test_a_prophet_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    prophet = Prophet(tiny_shape(), tiny_model(n_ffn=20).config)
    export_prophet(prophet, folder)
    prophet.target_config.n_embd = 32
    with pytest.raises(OptionError, match=r"a model of hidden_size 32, but .* has 24"):
        export_prophet(prophet, folder)
    with pytest.raises(OptionError, match="dtype is 'q8'"):
        export_prophet(prophet, folder, "q8")
    with pytest.raises(FormatError, match=r"no model\.safetensors"):
        export_prophet(prophet, tmp_path)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    "shape", [{}, {"block": "spikegpt"}, {"tied_head": True}, {"n_embd": 24, "n_layer": 2}]
)
def test_the_file_holds_what_the_engine_reads(
    tmp_path: Path, dtype: str, shape: dict[str, Any]
) -> None:
    folder = model_folder(tmp_path / "model", dtype)
    prophet = Prophet(tiny_shape(**shape), tiny_model().config)
    export_prophet(prophet, folder, dtype)
    tensors = load_file(folder / "prophet" / "model.safetensors")
    config = json.loads((folder / "prophet" / "config.json").read_text())
    narrow, wide, drafted = config["hidden_size"], 24, 50
    assert tensors["draft_ids"].dtype == torch.int32
    assert tensors["draft_ids"].tolist() == list(range(50))
    assert tensors["fuse.weight"].shape == (narrow, 2 * wide)
    assert ("up.weight" in tensors) == (narrow != wide)
    assert ("head.weight" in tensors) != config["tied_head"]
    assert tensors["ln_out.weight"].shape == (wide if config["tied_head"] else narrow,)
    if "head.weight" in tensors:
        assert tensors["head.weight"].shape == (drafted, narrow)
    assert not any("ln0" in name or "lif" in name for name in tensors)
    assert tensors["blocks.0.ffn.key.weight"].shape == (config["intermediate_size"], narrow)
    assert config["spike_embedding"] is False
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    assert all(t.dtype == kind for name, t in tensors.items() if name != "draft_ids")


def test_the_fingerprint_is_that_of_its_definition(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "f16")
    digest = hashlib.sha256()
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors):
        shape = ",".join(str(n) for n in tensors[name].shape)
        digest.update(f"{name}\0F16\0{shape}\0".encode())
        digest.update(tensors[name].numpy().tobytes()[:4096])
    assert fingerprint(folder / "model.safetensors") == digest.hexdigest()
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(FormatError, match="not a safetensors file"):
        fingerprint(tmp_path / "broken.safetensors")


def joint(detach: bool, weight: float = 1.0, **options: Any) -> ModelWithProphet:
    model = tiny_model()
    torch.manual_seed(9)
    prophet = Prophet(tiny_shape(draft_vocab=300), model.config)
    return ModelWithProphet(model, prophet, detach=detach, weight=weight, num_steps=2, **options)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_detached_training_identical(tmp_path: Path, loss: str) -> None:
    """A prophet that is trained along, detached, changes no bit of the model's training."""
    data, _ = tiny_data(tmp_path)
    config = {"max_step": 12, "grad_norm_clip": 0.2, "grad_accumulation": 2}
    alone = LanguageModelTrainer(tiny_model(), tiny_config(**config), root=tmp_path / "alone")
    alone.train(data)
    module = joint(detach=True, weight=3.0, loss=loss)
    first = {name: value.clone() for name, value in module.prophet.state_dict().items()}
    both = JointTrainer(module, tiny_config(**config), root=tmp_path / "both", prophet_rate=2.0)
    both.train(data)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(module.target.state_dict()[name], value), name
    assert not torch.equal(first["fuse.weight"], module.prophet.fuse.weight)
    logs = [rows_of(tmp_path / n / "run/training/train_log.csv") for n in ("alone", "both")]
    for column in ("train_loss", "val_loss", "learning_rate", "firing_rate"):
        assert [row[column] for row in logs[0]] == [row[column] for row in logs[1]], column
    learned = [float(row["prophet_loss"]) for row in logs[1]]
    assert learned[-1] < learned[0]


def test_training_together_reaches_the_model(tmp_path: Path) -> None:
    data, _ = tiny_data(tmp_path)
    modules = [joint(detach=detach, loss="ce") for detach in (True, False)]
    for n, module in enumerate(modules):
        JointTrainer(module, tiny_config(max_step=3, name=f"r{n}"), root=tmp_path).train(data)
    heads = [module.target.blocks[0].att.value.weight for module in modules]
    assert not torch.equal(*heads)
    # The folder of the run is a model with its prophet.
    loaded = load_prophet(tmp_path / "r1", load_target(tmp_path / "r1"))
    assert torch.equal(loaded.fuse.weight, modules[1].prophet.fuse.weight)


def test_a_joint_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    data, _ = tiny_data(tmp_path)
    options = {"lr_decay": False, "name": "run"}
    whole = joint(detach=False)
    JointTrainer(whole, tiny_config(max_step=6, **options), root=tmp_path / "a").train(data)
    JointTrainer(
        joint(detach=False), tiny_config(max_step=3, **options), root=tmp_path / "b"
    ).train(data)
    rest = joint(detach=False)
    JointTrainer(rest, tiny_config(max_step=6, **options), root=tmp_path / "b", resume="run").train(
        data
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_own_text_is_the_models(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    data, _ = tiny_data(tmp_path)
    told: list[int] = []
    options = {"threads": 1, "seed": 3, "progress": lambda done, _: told.append(done)}
    own = own_data(folder, data, 3000, **options)
    again = own_data(folder, data, 3000, threads=1, seed=3)
    assert len(own.train) >= 3000
    assert len(own.valid) > 100
    assert own.train.tolist() == again.train.tolist()
    assert own.train.tolist() != own_data(folder, data, 3000, threads=1, seed=4).train.tolist()
    assert told[-1] == 3000
    assert max(own.train) < 300
    assert own.train[-1] == data.end_of_text


def command(folder: Path, text: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    train_prophet.configure(parser)
    return train_prophet.run(parser.parse_args([str(folder), str(text), *options]))


SMALL = [
    *("--n-embd=8", "--draft-vocab=60", "--ctx-len=16", "--num-steps=2", "--device=cpu"),
    *("--batch-size=2", "--valid-every=10", "--threads=1"),
]


def test_the_command_trains_resumes_and_adapts(tmp_path: Path) -> None:
    folder, text = model_folder(tmp_path / "model"), text_file(tmp_path)
    assert command(folder, text, *SMALL, "--max-step=5") == 0
    assert load_file(folder / "prophet/model.safetensors")["fuse.weight"].dtype == torch.float16
    with pytest.raises(OptionError, match="holds a run already; --resume continues it"):
        command(folder, text, *SMALL)
    with pytest.raises(OptionError, match="--n-embd was 8 when the run began"):
        command(folder, text, "--resume", "--n-embd=9")
    adapt = ("--resume", "--max-step=8", "--own-tokens=2000", "--loss=acceptance", "--threads=1")
    assert command(folder, text, *adapt) == 0
    saved = torch.load(folder / "prophet/training/complete.pth", weights_only=True)
    assert saved["current_step"] == 8
    assert saved["trainer_config"]["loss"] == "acceptance"
    # Frequent tokens of the text, of the whole vocabulary.
    ids = load_file(folder / "prophet/model.safetensors")["draft_ids"]
    assert len(ids) == 60
    assert int(ids.max()) > 60


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    folder, text = model_folder(tmp_path / "model"), text_file(tmp_path)
    with pytest.raises(OptionError, match="holds no checkpoint to resume"):
        command(folder, text, "--resume")
    with pytest.raises(OptionError, match="loss is 'mse'"):
        command(folder, text, *SMALL, "--loss=mse")
    with pytest.raises(OptionError, match="ctx_len is 8; num_leading and num_steps need"):
        command(folder, text, "--ctx-len=8", "--num-steps=9", "--device=cpu")
