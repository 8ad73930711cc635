"""Loss and every gradient against the authors' own code (tests/golden/spikegpt-tiny*)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from spikelet.training.models.spikegpt import SpikeGPT, SpikeGPTConfig  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = ["spikegpt-tiny", "spikegpt-tiny-realemb", "spikegpt-tiny-ffnpre"]


def load_model(folder: str, **options: object) -> SpikeGPT:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    model = SpikeGPT(SpikeGPTConfig.from_model_config(config, **options))
    model.load_state_dict(load_file(GOLDEN / folder / "model.safetensors"), strict=True)
    return model.eval()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "naive"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_t28_loss_and_every_gradient(folder: str, fused: bool) -> None:
    expected = load_file(GOLDEN / folder / "grads.safetensors")
    model = load_model(folder, fused=fused)
    loss = model(expected["ids"], expected["targets"])
    loss.backward()
    assert abs(loss.item() - expected["loss"].item()) < 1e-5
    parameters = dict(model.named_parameters())
    names = {key.removeprefix("grad.") for key in expected if key.startswith("grad.")}
    assert names == set(parameters)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[f"grad.{name}"]) < 1e-4, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_gradients_without_l2wrap(folder: str) -> None:
    expected = load_file(GOLDEN / folder / "grads.safetensors")
    model = load_model(folder, l2wrap=0.0)
    model(expected["ids"], expected["targets"]).backward()
    for name in ("head.weight", "ln_out.weight", "emb.weight"):
        found = model.get_parameter(name).grad
        assert found is not None
        assert relative(found, expected[f"grad_without_l2wrap.{name}"]) < 1e-4, name
        assert relative(found, expected[f"grad.{name}"]) > 5e-4, "L2Wrap must make a difference"


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "naive"])
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("chunks", [[96], [1] * 96, [5, 90, 1]], ids=["whole", "single", "odd"])
def test_logits_spikes_and_state(folder: str, fused: bool, chunks: list[int]) -> None:
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    model = load_model(folder, fused=fused)
    state, logits, spikes = None, [], []
    with torch.no_grad():
        for ids in expected["ids"][None].split(chunks, dim=1):
            part: list[torch.Tensor] = []
            hidden, state = model.hidden(ids, state, part)
            logits.append(model.head(hidden)[0])
            spikes.append(torch.stack(part)[:, 0])
    assert state is not None
    assert (torch.cat(logits) - expected["logits"]).abs().max() < 5e-5
    for layer in range(len(model.blocks)):
        for lif in (0, 1):
            found = torch.cat([part[2 * layer + lif] for part in spikes])
            assert torch.equal(found.byte(), expected[f"spikes.{layer}.lif{lif + 1}"])
        membranes = torch.stack((state[layer].membrane1[0], state[layer].membrane2[0]))
        assert (membranes - expected["membrane_last"][layer]).abs().max() < 1e-4
