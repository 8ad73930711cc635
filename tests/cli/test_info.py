"""`spikelet info`: facts of a model without loading it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import spikelet

from .conftest import make_model
from .helpers import TESTS, Cli


def test_facts(cli: Cli, model_folder: Path) -> None:
    result = cli("info", model_folder)
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert "spikegpt (variant rwkv, binary embedding)" in lines["architecture"]
    assert "4 layers x 64, ffn 256, vocabulary 256" in lines["shape"]
    assert "249k" in lines["parameters"]
    assert "7.0 KB per sequence" in lines["state"]
    assert "f32" in lines["stored as"]
    assert "bytes" in lines["tokenizer"]
    assert all(dtype in lines["memory"] for dtype in ("f32", "bf16", "f16"))


def test_json(cli: Cli, model_folder: Path) -> None:
    facts = json.loads(cli("info", model_folder, "--json").out)
    assert facts["num_parameters"] == sum(_size(tensor["shape"]) for tensor in facts["tensors"])
    assert facts["state_bytes"] == 4 * 7 * 64 * 4
    assert facts["memory_bytes"]["bf16"] < facts["memory_bytes"]["f32"]
    model = spikelet.load(model_folder)
    assert facts["state_bytes"] == model.state_bytes


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def test_tensors(cli: Cli, model_folder: Path) -> None:
    lines = cli("info", model_folder, "--tensors").out.splitlines()
    (line,) = (line for line in lines if line.startswith("blocks.3.ffn.key.weight"))
    assert line.split(None, 1)[1].strip().startswith("f32  [256, 64]")


def test_a_model_without_a_tokenizer(cli: Cli) -> None:
    assert "none: works with token ids only" in cli("info", TESTS / "golden" / "spikegpt-tiny").out


def test_sampling_settings_and_template_are_shown(cli: Cli, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", temperature=0.5, chat_template="Q{user}A{assistant}\n")
    out = cli("info", folder).out
    assert "temperature 0.5" in out
    assert "'Q{user}A{assistant}\\n'" in out


def test_a_bare_file_must_be_told_what_it_is(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    bare = shutil.copy(model_folder / "model.safetensors", tmp_path / "bare.safetensors")
    result = cli("info", bare)
    assert result.code == 2
    assert "--model-type" in result.err
    told = ["--model-type", "spikegpt"]
    result = cli("info", bare, *told)
    assert result.code == 2
    assert "--spike-embedding or --no-spike-embedding" in result.err
    real = json.loads(cli("info", bare, *told, "--no-spike-embedding", "--json").out)
    assert real["config"]["spike_embedding"] is False
    told.append("--spike-embedding")
    facts = json.loads(cli("info", bare, *told, "--json").out)
    assert facts["config"]["spike_embedding"] is True
    assert facts["model_type"] == "spikegpt"
    assert facts["tokenizer"] is None
    target = tmp_path / "told"
    assert cli("convert", bare, target, *told).code == 0
    assert cli("info", target).code == 0


def test_a_broken_file_is_one_line(cli: Cli, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:5000])
    result = cli("info", folder)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "model.safetensors" in result.err
