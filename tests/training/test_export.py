"""The model folder that training leaves for the engine, and the command that makes it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import spikelet  # noqa: E402
from spikelet.cli import train  # noqa: E402
from spikelet.cli.terminal import UsageError  # noqa: E402
from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import DataError, SpikeGPT, SpikeGPTConfig, export_model  # noqa: E402
from training.tiny import text_file, tiny_trainer  # noqa: E402


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_an_exported_folder_holds_the_model(tmp_path: Path, dtype: str) -> None:
    trainer = tiny_trainer(tmp_path)
    out = tmp_path / "model"
    export_model(trainer.model, out, trainer.tokenizer, dtype, {"temperature": 0.8})
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "generation_config.json",
    }  # fmt: skip
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"temperature": 0.8, "eos_token_id": 0}
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    model = SpikeGPT(SpikeGPTConfig.from_model_config(config))
    weights = load_file(out / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    for name, value in trainer.model.state_dict().items():
        assert weights[name].dtype == kind
        assert torch.equal(weights[name], value.to(kind)), name


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = SpikeGPT(SpikeGPTConfig(10, 8, "RWKV", 1, 4))
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"tensor head\.weight has values that f16 cannot hold"):
        export_model(model, tmp_path, dtype="f16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        export_model(model, tmp_path, dtype="int8")
    assert not list(tmp_path.iterdir())


def command(text: Path, out: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    return train.run(parser.parse_args([str(text), "--out", str(out), *options]))


SMALL = [
    *("--n-layer=1", "--n-embd=16", "--ctx-len=16", "--vocab-size=280", "--no-spike-embedding"),
    *("--batch-size=2", "--max-tokens=320", "--warmup-tokens=32", "--beta2=0.95"),
    *("--sample-tokens=3", "--valid-every=10", "--device=cpu"),
]


def test_the_command_trains_resumes_and_exports(tmp_path: Path) -> None:
    text, out = text_file(tmp_path), tmp_path / "out"
    assert command(text, out, *SMALL, "--export-dtype=bf16") == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"]) == (280, 16)
    assert not config["spike_embedding"]
    assert load_file(out / "model.safetensors")["emb.weight"].dtype == torch.bfloat16
    settings = json.loads((out / "training" / "trainer_config.json").read_text())
    assert (settings["beta1"], settings["beta2"]) == (0.9, 0.95)
    assert settings["learning_rate"] == 4e-4  # the default, untouched

    with pytest.raises(OptionError, match="holds a run already; --resume continues it"):
        command(text, out, *SMALL)
    with pytest.raises(OptionError, match="--n-embd was 16 when the run began"):
        command(text, out, "--resume", "--n-embd=32")
    assert command(text, out, "--resume", "--max-tokens=640") == 0
    saved = torch.load(out / "training" / "complete.pth", weights_only=True)
    assert saved["current_step"] == 20
    with pytest.raises(OSError, match=r"no checkpoint 'iter-3-ckpt' \(there are: iter-10-ckpt"):
        command(text, out, "--resume=iter-3-ckpt")


def test_the_command_trains_rwkv_under_a_name(tmp_path: Path, home: Path) -> None:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    text = str(text_file(tmp_path))
    rwkv = ("--architecture=rwkv4", "--tokenizer=bytes", "--device=cpu")
    small = ("--n-layer=1", "--n-embd=16", "--ctx-len=16", "--max-step=2")
    named = (text, "--name=letters", *rwkv)
    assert train.run(parser.parse_args([*named, *small])) == 0
    model = spikelet.load("letters", threads=1)
    assert (model.config.model_type, model.vocab_size) == ("rwkv4", 256)
    assert train.run(parser.parse_args([*named, "--resume", "--max-step=3"])) == 0
    with pytest.raises(UsageError, match="rwkv4 has no --surrogate"):
        train.run(parser.parse_args([text, "--out=x", *rwkv, "--surrogate=atan"]))


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    text, out = text_file(tmp_path), tmp_path / "out"
    with pytest.raises(DataError, match=r"none\.txt: no such text file"):
        command(tmp_path / "none.txt", out, *SMALL)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json: not a tokenizer\.json"):
        command(text, out, *SMALL, "--tokenizer", str(tmp_path / "bad.json"))
    with pytest.raises(OptionError, match="model_type is 'GPT'"):
        command(text, out, *SMALL, "--model-type=GPT")
    with pytest.raises(OptionError, match="holds no checkpoint to resume"):
        command(text, out, "--resume")


def test_every_config_field_is_an_option_with_help() -> None:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    helps = {action.dest: action.help or "" for action in parser._actions}
    for name in ("n_ffn", "l2wrap", "decay_share", "autocast", "sample_prompt"):
        assert len(helps[name].partition(" (default")[0]) > 10, name
    assert "(default: 0.0004)" in helps["learning_rate"]


@pytest.mark.parametrize("variant", ["RWKV", "RWKV-ffnPre"])
@pytest.mark.parametrize("spike_embedding", [True, False])
def test_the_engine_computes_what_was_trained(
    tmp_path: Path, variant: str, spike_embedding: bool
) -> None:
    model = SpikeGPT(
        SpikeGPTConfig(256, 32, variant, 3, 24, n_ffn=40, spike_embedding=spike_embedding)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    export_model(model, tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(model.config.to_model_config() | {"tokenizer_class": "bytes"})
    )
    ids = torch.randint(0, 256, (1, 40))
    engine = spikelet.load(tmp_path)
    found = torch.from_numpy(engine.forward(ids[0].tolist(), engine.new_state(), all_logits=True))
    with torch.no_grad():
        assert (found - model(ids)[0]).abs().max() < 1e-4
