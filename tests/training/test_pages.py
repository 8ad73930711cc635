"""The forms in which DarwinKit's pages call things, and the sizes that they name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from spikelet import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    DataError,
    Predicter,
    SpikeGPT,
    SpikeGPTConfig,
    Trainer,
    TrainerConfig,
    train_tokenizer,
)
from training.duck import DuckDataset, DuckTokenizer, FastDuckTokenizer  # noqa: E402
from training.tiny import DOCUMENTS  # noqa: E402

WORDS = sorted({word for text in DOCUMENTS for word in text.split()})


def train(name: str, tokenizer: Any, dataset: object) -> Trainer:
    config = SpikeGPTConfig(tokenizer.vocab_size, 16, "RWKV", 1, 16)
    options = TrainerConfig(name=name, device="cpu", max_epochs=1, epoch_length_fixed=3)
    trainer = Trainer(SpikeGPT(config), tokenizer, options)
    trainer.train(train_dataset=dataset)
    return trainer


def test_d01_a_data_set_of_the_hub_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path))
    tokenizer = FastDuckTokenizer(train_tokenizer(DOCUMENTS, 300))
    tokenizer.pad_token = tokenizer.eos_token
    wikitext = {"train": DuckDataset(DOCUMENTS), "validation": DuckDataset(DOCUMENTS[:5])}
    data = train("page", tokenizer, wikitext["train"]).data
    assert data is not None
    assert data.train_sizes.documents + data.valid_sizes.documents >= len(DOCUMENTS)
    whole = train("dict", tokenizer, wikitext).data
    assert whole is not None
    assert whole.valid_sizes.documents == 5
    predicter = Predicter.from_pretrained("page")
    assert (
        predicter.tokenizer.encode("The cat") == tokenizer.backend_tokenizer.encode("The cat").ids
    )
    assert isinstance("".join(predicter.predict("The cat", ctx_len=20)), str)


def test_d02_a_tokenizer_that_cannot_be_written_trains_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path))
    words = DuckTokenizer(WORDS)
    train("words", words, DOCUMENTS)
    with pytest.raises(DataError, match=r"words has no tokenizer .* give the one it was trained"):
        Predicter.from_pretrained("words")
    predicter = Predicter.from_pretrained("words", tokenizer=words)
    found = "".join(predicter.predict("The cat", ctx_len=30, seed=3)).split()
    assert set(found) <= {*words.words}


def test_d05_both_forms_of_the_pages_construct() -> None:
    vocab_size, ctx_len, n_layer, n_embd = 300, 64, 2, 32
    first = SpikeGPTConfig(vocab_size, ctx_len, "RWKV", n_layer, n_embd)
    second = SpikeGPTConfig(
        vocab_size, ctx_len=ctx_len, model_type="RWKV", n_layer=n_layer, n_embd=n_embd
    )
    assert first == second
    assert (first.vocab_size, first.ctx_len, first.n_layer, first.n_embd) == (300, 64, 2, 32)
    order = list(inspect.signature(SpikeGPTConfig).parameters)
    assert order[:5] == ["vocab_size", "ctx_len", "model_type", "n_layer", "n_embd"]


def test_d06_defaults_are_the_authors() -> None:
    config = SpikeGPTConfig()
    assert (config.vocab_size, config.ctx_len, config.model_type) == (30500, 1024, "RWKV")
    assert (config.n_layer, config.n_embd, config.dropout) == (12, 768, 0.03)


def test_d07_both_model_types_and_no_other() -> None:
    plain, pre = (
        SpikeGPT(SpikeGPTConfig(20, 8, kind, 2, 8)).state_dict() for kind in ("RWKV", "RWKV-ffnPre")
    )
    assert any(name.startswith("blocks.0.att.") for name in plain)
    assert not any(".ffnPre." in name for name in plain)
    assert any(name.startswith("blocks.0.ffnPre.") for name in pre)
    assert not any(name.startswith("blocks.0.att.") for name in pre)
    assert any(name.startswith("blocks.1.att.") for name in pre)
    with pytest.raises(OptionError, match="model_type is 'RWKV5'; known are 'RWKV', 'RWKV-ffnPre'"):
        SpikeGPTConfig(model_type="RWKV5")


def test_d08_a_module_with_the_authors_names() -> None:
    model = SpikeGPT(SpikeGPTConfig(20, 8, "RWKV", 2, 8))
    assert isinstance(model.to("cpu"), torch.nn.Module)
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            model.cuda()  # torch's own method
    norms = [f"{name}.{part}" for name in ("ln1", "ln2") for part in ("weight", "bias")]
    mixes = [f"att.time_{name}" for name in ("decay", "first", "mix_k", "mix_v", "mix_r")]
    mixes += ["ffn.time_mix_k", "ffn.time_mix_r"]
    matrices = [f"att.{name}.weight" for name in ("key", "value", "receptance", "output")]
    matrices += [f"ffn.{name}.weight" for name in ("key", "receptance", "value")]
    expected = {f"blocks.{n}.{name}" for n in range(2) for name in norms + mixes + matrices}
    expected |= {"blocks.0.ln0.weight", "blocks.0.ln0.bias", "emb.weight", "head.weight"}
    assert set(model.state_dict()) == expected | {"ln_out.weight", "ln_out.bias"}


@pytest.mark.parametrize("n_layer", [12, 24])
def test_d09_the_pages_sizes_train_on_a_cpu_without_a_compiler(
    n_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(matrix: Any, gain: float = 1.0) -> Any:  # 24 layers of QR take half a minute
        return torch.nn.init.uniform_(matrix, -gain / 30, gain / 30)

    monkeypatch.setattr(torch.nn.init, "orthogonal_", quick)
    monkeypatch.setenv("PATH", "")
    model = SpikeGPT(SpikeGPTConfig(256, 8, "RWKV", n_layer, 768))
    ids = torch.randint(256, (1, 9))
    loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.step()
    assert torch.isfinite(loss)
    assert len(model.blocks) == n_layer
    assert not {"cupy", "spikingjelly", "torch.utils.cpp_extension"} & set(sys.modules)
