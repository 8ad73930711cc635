"""`spikelet lm` and `spikelet create-options`."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

import spikelet

from .helpers import Cli, start

STORIES = "\n<|endoftext|>\n".join(f"The fox counts to {n}. Then it sleeps." for n in range(60))
SIZE = ("--n_layer", "1", "--n_embd", "16", "--ctx_len", "16")


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text(STORIES)
    return path


@pytest.fixture(autouse=True)
def own_darwinkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("DARWIN_KIT_HOME", "DSPIKE_HOME"):
        monkeypatch.delenv(name, raising=False)


def train(cli: Cli, stories: Path, *words: str, kind: str = "SpikeGPT", **given: str) -> object:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    try:
        result = cli("lm", "train", "--dataset", str(stories), *options, kind, *words)
    finally:
        torch.set_num_threads(before)
    return result


@pytest.mark.parametrize("kind", ["SpikeGPT", "RWKV4"])
def test_c03_every_field_is_an_option_with_its_default(cli: Cli, kind: str) -> None:
    from spikelet import training

    result = cli("lm", "train", "--dataset", "x", kind, "--help")
    assert result.code == 0
    text = " ".join(result.out.split())
    for config in (getattr(training, f"{kind}Config"), training.TrainerConfig):
        for field in fields(config):
            dashed = field.name.replace("_", "-")
            assert f"--{dashed} " in text or f"--{dashed}, " in text, field.name
            assert f"--{field.name}" in text
            assert f"(default: {field.default})" in text, field.name
    outer = cli("lm", "train", "--help").out
    assert all(name in outer for name in ("--tokenizer", "--dataset", "--resume", "--fork"))
    assert all(name in outer for name in ("SpikeGPT", "RWKV4"))


def test_c03_train_show_predict_and_resume(cli: Cli, stories: Path) -> None:
    words = (*SIZE, "--vocab_size", "290", "--max-step", "4", "--save_step_interval", "2")
    result = train(cli, stories, "--name", "fox", *words, tokenizer="bpe")
    assert result.code == 0, result.err
    config = json.loads((spikelet.home() / "runs/fox/training/config.json").read_text())
    assert (config["vocab_size"], config["n_embd"]) == (290, 16)
    assert spikelet.load("fox").vocab_size == 290

    log = (spikelet.home() / "runs/fox/training/train_log.csv").read_text()
    rates = [float(row["learning_rate"]) for row in csv.DictReader(log.splitlines())]
    assert rates == sorted(rates, reverse=True)  # it does not rise again before the end
    assert rates[-1] == pytest.approx(1e-5)

    shown = cli("lm", "show").out.splitlines()
    assert shown[0] == "fox  finished"
    assert [line.split()[:2] for line in shown[1:]] == [
        ["1.", "iter-2-ckpt"], ["2.", "iter-4-ckpt"], ["3.", "complete"],
    ]  # fmt: skip

    result = train(cli, stories, "--max_step", "6", resume="fox")
    assert result.code == 0, result.err
    saved = json.loads((spikelet.home() / "runs/fox/training/trainer_config.json").read_text())
    assert (saved["max_step"], saved["save_step_interval"]) == (6, 2)
    assert "iter-6-ckpt" in cli("lm", "show").out

    for name in ("fox", "fox:iter-2-ckpt"):
        result = cli("lm", "predict", "SpikeGPT", name, "The fox", "--ctx_len", "20", "--seed", "1")
        assert result.code == 0, result.err
        assert result.out.startswith("The fox")
        assert result.out.endswith("\n")
        assert len(result.out) > len("The fox\n")
    again = cli("lm", "predict", "SpikeGPT", name, "The fox", "--ctx-len", "20", "--seed", "1")
    assert again.out == result.out


def test_c03_resume_into_a_new_name_and_no_other_shape(cli: Cli, stories: Path) -> None:
    result = train(cli, stories, *SIZE, "--max_step", "1", "--save_step_interval", "0")
    assert "the run is called SpikeGPT-1" in result.err
    result = train(cli, stories, "--name", "two", "--max_step", "1", resume="SpikeGPT-1:complete")
    assert result.code == 0, result.err
    assert {"SpikeGPT-1  finished", "two  finished"} <= set(cli("lm", "show").out.splitlines())
    result = train(cli, stories, "--n_layer", "2", resume="two")
    assert result.code == 2
    assert "--n-layer is 1 in two" in result.err


def test_c03_the_tokenizer_decides_the_vocabulary(cli: Cli, stories: Path) -> None:
    words = (*SIZE, "--name", "bytes", "--vocab_size", "30500", "--max_step", "1")
    result = train(cli, stories, *words, tokenizer="bytes", kind="RWKV4")
    assert result.code == 0, result.err
    assert "vocab_size is 256, as the tokenizer's, and not the 30500 asked for" in result.err
    assert cli("lm", "predict", "RWKV4", "bytes", "ab").code == 0
    result = cli("lm", "predict", "SpikeGPT", "bytes", "ab")
    assert result.code == 2
    assert "bytes is a RWKV4, not a SpikeGPT" in result.err


def test_c03_a_fork_trains_and_predicts(cli: Cli, stories: Path) -> None:
    folder = spikelet.home() / "forks" / "quiet"
    folder.mkdir(parents=True)
    (folder / "fork.json").write_text('{"modules": {"blocks.*.ffn": "code.py:Quiet"}}')
    (folder / "code.py").write_text(
        "from torch import nn\n"
        "class Quiet(nn.Module):\n"
        "    def forward(self, x, *rest):\n"
        "        out, density = super().forward(x, *rest)\n"
        "        return 0 * out, density\n"
    )
    words = (*SIZE, "--name", "forked", "--max_step", "3", "--vocab-size", "280")
    result = train(cli, stories, *words, fork="quiet")
    assert result.code == 0, result.err
    training = spikelet.home() / "runs/forked/training"
    assert json.loads((training / "external_config.json").read_text())["fork"] == "quiet"
    assert cli("lm", "predict", "SpikeGPT", "forked", "The", "--ctx_len", "9").code == 0
    with pytest.raises(spikelet.NotFoundError):  # the engine would compute something else
        spikelet.load("forked")
    result = train(cli, stories, *SIZE, "--name", "other", fork="loud")
    assert result.code == 1
    assert "there is no fork 'loud'" in result.err


def test_c04_the_text_is_a_stream(cli: Cli, stories: Path) -> None:
    words = (*SIZE, "--name", "fox", "--max_step", "1", "--vocab-size", "280")
    assert train(cli, stories, *words).code == 0
    long = ("lm", "predict", "SpikeGPT", "fox", "The", "--ctx_len", "1000000")
    with start(*long, env={"OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 10)  # long before the last of a million tokens
        process.kill()
    assert first.startswith(b"The")


@pytest.mark.parametrize(
    ("words", "code", "needed"),
    [
        (["predict", "SpikeGPT", "gone", "x"], 1, "there is no run 'gone'"),
        (["predict", "SpikeLM", "gone", "x"], 2, "SpikeLM"),
        (["predict", "SpikeGPT", "../x", "x"], 2, "name of the run is '../x'"),
        (["train", "SpikeGPT"], 2, "--dataset"),
        (["train", "--dataset", "x", "SpikeGPT", "--n-layers", "1"], 2, "did you mean --n-layer?"),
        (["train", "--dataset", "x", "SpikeGPT", "--n_layers", "1"], 2, "did you mean --n_layer?"),
        (["train", "--dataset", "x", "SpikeGPT", "--n_layer", "many"], 2, "invalid int value"),
        (["train", "--dataset", "x", "SpikeGPT", "--fused", "maybe"], 2, "needs True or False"),
        (["train", "--dataset", "x", "SpikeGPT", "--batch_size", "0"], 2, "batch_size is 0"),
        ([], 2, "COMMAND"),
    ],
)
def test_c03_wrong_usage_is_one_line(cli: Cli, words: list[str], code: int, needed: str) -> None:
    pytest.importorskip("torch")
    result = cli("lm", *words)
    assert result.code == code
    assert result.err.startswith("spikelet: error: ")
    assert needed in result.err


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--fused"], True),
        (["--no-fused"], False),
        (["--no_fused"], False),
        (["--fused", "False"], False),
        (["--fused", "True"], True),
        ([], None),
    ],
)
def test_c03_flags_in_both_manners(words: list[str], value: bool | None) -> None:
    from spikelet.cli import parse

    args = parse(["lm", "train", "--dataset", "x", "SpikeGPT", *words, "--lr_decay", "false"])
    assert args.fused is value
    assert args.lr_decay is False


def test_c05_without_any_model(cli: Cli) -> None:
    result = cli("lm", "show")
    assert result.code == 0
    assert "no trained models under" in result.out


def test_c06_version_and_options(cli: Cli, tmp_path: Path) -> None:
    assert cli("--version").out == f"spikelet {spikelet.__version__}\n"
    printed = json.loads(cli("create-options").out)
    assert printed["SpikeGPT"]["trainer"]["batch_size"]["default"] == 2
    path = tmp_path / "options.json"
    assert cli("create-options", "--out", path).code == 0
    assert json.loads(path.read_text()) == printed
