"""Edited code for parts of a model, run only where its user asked for it by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    Trainer,
    TrainerConfig,
    TrainingError,
    forks,
    train_tokenizer,
)
from spikelet.training.models.blocks import ChannelMix  # noqa: E402
from spikelet.training.predicter import Predicter  # noqa: E402
from training.saved import save_run, tiny_model  # noqa: E402
from training.tiny import DOCUMENTS  # noqa: E402

IDS = torch.arange(5, 17)[None]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path / "home"))


def write_fork(name: str, modules: dict[str, str], **files: str) -> Path:
    folder = forks.fork_folder(name)
    folder.mkdir(parents=True)
    described = {"model_class": "SpikeGPT", "modules": modules}
    (folder / "fork.json").write_text(json.dumps(described))
    for stem, source in files.items():
        (folder / f"{stem}.py").write_text(source)
    return folder


DOUBLE = """
import torch
from torch import nn

class Louder(nn.Module):
    def __init__(self):
        raise AssertionError("is not called")

    def forward(self, x, *rest):
        out, density = super().forward(x, *rest)
        return self.louder() * out, density

    def louder(self):
        return 2.0
"""


def test_t18_the_edited_forward_is_used_and_the_original_stays() -> None:
    model = tiny_model()
    plain, names = model(IDS), list(model.state_dict())
    folder = write_fork("loud", {"blocks.*.ffn": "code.py:Louder"}, code=DOUBLE)
    expected = copy.deepcopy(model)
    for block in expected.blocks:
        block.ffn.value.weight.data *= 2
    assert forks.apply_fork(model, folder) == ["blocks.0.ffn", "blocks.1.ffn"]
    assert torch.allclose(model(IDS), expected(IDS), atol=1e-5)
    assert not torch.allclose(model(IDS), plain, atol=1e-3)
    assert list(model.state_dict()) == names
    assert type(model.blocks[0].ffn).__name__ == "ChannelMix"
    assert isinstance(model.blocks[0].ffn, ChannelMix)
    # Neither the class nor other models have changed.
    assert torch.equal(tiny_model()(IDS), plain)
    loss = model(IDS[:, :-1], IDS[:, 1:])
    loss.backward()
    assert model.blocks[0].ffn.value.weight.grad is not None


def test_t18_a_forked_run_predicts_with_its_code() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    write_fork("loud", {"blocks.*.ffn": "code.py:Louder"}, code=DOUBLE)
    model = tiny_model()
    save_run("plain", model, tokenizer)
    save_run("forked", model, tokenizer, fork="loud")
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.value.weight *= 2
    save_run("same", model, tokenizer)

    def text(name: str) -> str:
        predicter = Predicter.from_pretrained(name)
        return "".join(predicter.predict("The cat", temperature=0.0, max_new_tokens=20))

    assert text("forked") == text("same") != text("plain")


def test_t18_code_that_changed_since_training_is_said() -> None:
    folder = write_fork("loud", {"blocks.*.ffn": "code.py:Louder"}, code=DOUBLE)
    config = TrainerConfig(name="fox", device="cpu", max_step=1, batch_size=1)
    trainer = Trainer(tiny_model(256), config, tokenizer="bytes", fork="loud")
    trainer.train(DOCUMENTS)
    assert type(trainer.model.blocks[0].ffn).__mro__[1].__name__ == "Louder"
    Predicter.from_pretrained("fox")
    (folder / "code.py").write_text(DOUBLE.replace("2.0", "3.0"))
    with pytest.warns(UserWarning, match="the code of fork 'loud' is not what it was when fox"):
        Predicter.from_pretrained("fox")
    with pytest.raises(spikelet.NotFoundError):  # no model folder: the engine lacks the code
        spikelet.load("fox")


def test_t18_a_run_brings_no_code_along(tmp_path: Path) -> None:
    folder = save_run("forked", tiny_model(), "bytes", fork="gone")
    with pytest.raises(TrainingError, match=r"there is no fork 'gone'.*known: none"):
        Predicter.from_pretrained("forked")
    external = json.loads((folder / "external_config.json").read_text())
    (tmp_path / "code").mkdir()
    for name in ("../../code", str(tmp_path / "code")):
        (folder / "external_config.json").write_text(json.dumps(external | {"fork": name}))
        with pytest.raises(OptionError, match="fork is"):
            Predicter.from_pretrained("forked")


def test_t18_the_code_has_a_namespace_of_its_own() -> None:
    code = "from torch import nn\nmark = []\nclass Part(nn.Module):\n    mark = mark\n"
    folders = [write_fork(n, {"blocks.0.ffn": "code.py:Part"}, code=code) for n in ("a", "b")]
    models = [tiny_model(), tiny_model()]
    for model, folder in zip(models, folders, strict=True):
        forks.apply_fork(model, folder)
    assert models[0].blocks[0].ffn.mark is not models[1].blocks[0].ffn.mark
    assert models[0].blocks[0].ffn.mark == []
    with pytest.raises(ImportError):
        __import__("code_of_fork")
    assert forks.list_forks() == ["a", "b"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"blocks.9.ffn": "code.py:Louder"}, "SpikeGPT has no submodule 'blocks.9.ffn'"),
        ({"blocks.0.ffn": "code.py:Quieter"}, "has no class 'Quieter'"),
        ({"blocks.0.ffn": "code.py:torch"}, "has no class 'torch'"),
        ({"blocks.0.ffn": "other.py:Louder"}, "no such file"),
        ({"blocks.0.ffn": "../loud/code.py:Louder"}, "file of '../loud/code.py:Louder'"),
        ({"blocks.0.ffn": "broken.py:X"}, "broken.py: NameError: name 'nowhere'"),
        ({}, "modules is {}"),
    ],
)
def test_what_is_wrong_with_a_fork_is_named(modules: dict[str, str], message: str) -> None:
    folder = write_fork("loud", modules, code=DOUBLE, broken="nowhere")
    with pytest.raises((OptionError, TrainingError), match=message):
        forks.apply_fork(tiny_model(), folder)


def test_a_fork_of_another_model_is_refused() -> None:
    folder = write_fork("loud", {"": "code.py:Louder"}, code=DOUBLE)
    with pytest.raises(OptionError, match="is for SpikeGPT; the model is Linear"):
        forks.apply_fork(torch.nn.Linear(2, 2), folder)


def test_t18_a_new_fork_changes_nothing_until_it_is_edited() -> None:
    model = tiny_model()
    plain = model(IDS)
    folder = forks.create_fork("mine", model, ["blocks.*.ffn", "blocks.0.att", ""])
    assert folder == spikelet.home() / "forks" / "mine"
    assert len(forks.apply_fork(model, folder)) == 4
    assert torch.equal(model(IDS), plain)
    path = folder / "channelmix.py"
    source = path.read_text()
    assert "class ChannelMix(nn.Module):" in source
    assert source.count("torch.sigmoid(") == 1
    path.write_text(source.replace("torch.sigmoid(", "torch.tanh("))
    edited = tiny_model()
    forks.apply_fork(edited, folder)
    assert not torch.allclose(edited(IDS), plain, atol=1e-3)
    with pytest.raises(OptionError, match="there is a fork 'mine' already"):
        forks.create_fork("mine", model, [""])
    with pytest.raises(OptionError, match=r"'blocks\.0\.\*' names .*, .*; submodules of one class"):
        forks.create_fork("other", model, ["blocks.0.*"])
