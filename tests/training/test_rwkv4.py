"""RWKV-4 in training: the authors' numbers, the engine's, and SpikeGPT without its neurons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import spikelet  # noqa: E402
from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    RWKV4,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
    export_model,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "rwkv4-tiny"


def random_model(**options: object) -> RWKV4:
    model = RWKV4(RWKV4Config(40, 16, n_layer=3, n_embd=24, n_ffn=56, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "naive"])
@pytest.mark.parametrize("chunks", [[96], [1] * 96, [5, 90, 1]], ids=["whole", "single", "odd"])
def test_logits_are_the_authors(fused: bool, chunks: list[int]) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    model = RWKV4(RWKV4Config.from_model_config(config, fused=fused))
    model.load_state_dict(load_file(GOLDEN / "model.safetensors"), strict=True)
    expected = load_file(GOLDEN / "expected.safetensors")
    state, logits = None, []
    with torch.no_grad():
        for part in expected["ids"][None].split(chunks, dim=1):
            hidden, state = model.hidden(part, state)
            logits.append(model.head(hidden)[0])
    assert (torch.cat(logits) - expected["logits"]).abs().max() < 1e-4


def test_fused_gradients_are_those_of_plain_torch() -> None:
    model, naive = random_model(), random_model(fused=False).double()
    naive.load_state_dict(model.state_dict())
    ids, targets = torch.randint(0, 40, (2, 2, 16))
    losses = [m(ids, targets) for m in (model, naive)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    for (name, one), two in zip(model.named_parameters(), naive.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert (one.grad.double() - two.grad).norm() <= 1e-4 * two.grad.norm() + 1e-9, name


def test_the_engine_computes_what_was_trained(tmp_path: Path) -> None:
    model = random_model().eval()
    export_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "rwkv4"
    ids = torch.randint(0, 40, (1, 50))
    engine = spikelet.load(tmp_path)
    found = torch.from_numpy(engine.forward(ids[0].tolist(), engine.new_state(), all_logits=True))
    with torch.no_grad():
        assert (found - model(ids)[0]).abs().max() < 1e-4


def test_a_spikegpt_without_neurons_and_with_a_real_embedding_has_the_same_bits() -> None:
    model = random_model()
    twin = SpikeGPT(
        SpikeGPTConfig(
            *(40, 16, "RWKV", 3, 24),
            n_ffn=56, spike_embedding=False, dropout=0.0, neuron="none",
        )
    )  # fmt: skip
    twin.load_state_dict(model.state_dict(), strict=True)
    ids, targets = torch.randint(0, 40, (2, 2, 16))
    results = []
    for one in (model, twin):
        loss = one(ids, targets)
        results.append([loss, *torch.autograd.grad(loss, list(one.parameters()))])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_both_models_are_initialised_alike() -> None:
    torch.manual_seed(5)
    one = RWKV4(RWKV4Config(40, 16, n_layer=3, n_embd=24)).state_dict()
    torch.manual_seed(5)
    two = SpikeGPT(SpikeGPTConfig(40, 16, "RWKV", n_layer=3, n_embd=24)).state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "blocks.0.ln0.weight" in one
    loss = RWKV4(RWKV4Config(40, 16, n_layer=2, n_embd=24))(*torch.randint(0, 40, (2, 2, 16)))
    assert loss.item() == pytest.approx(math.log(40), abs=0.5)


def test_config_goes_there_and_back() -> None:
    config = RWKV4Config(50, 32, n_layer=2, n_embd=16, n_ffn=40)
    assert RWKV4Config.from_model_config(config.to_model_config()) == config
    assert RWKV4Config(n_embd=16).intermediate_size == 64
    written = config.to_model_config()
    with pytest.raises(OptionError, match="model_type is 'gpt2'; needed is 'rwkv4'"):
        RWKV4Config.from_model_config(written | {"model_type": "gpt2"})
    with pytest.raises(OptionError, match=r"unknown options \['neuron'\]"):
        RWKV4Config.from_model_config(written, neuron="lif")
    with pytest.raises(OptionError, match="n_layer is 0"):
        RWKV4Config(n_layer=0)
