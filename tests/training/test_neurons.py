"""Neuron options in training, in the model folder and in the engine."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

import spikelet  # noqa: E402
from reference import naive_spikegpt  # noqa: E402
from spikelet.cli import main  # noqa: E402
from spikelet.errors import OptionError, SpikeletError  # noqa: E402
from spikelet.training import SpikeGPT, SpikeGPTConfig, export_model, ops  # noqa: E402
from spikelet.training.neurons import LIF, PLIF  # noqa: E402

SURROGATES = [("atan", 2.0), ("atan", 5.0), ("sigmoid", 4.0), ("fast_sigmoid", 25.0)]


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-2))


def primitive(name: str, alpha: float, z: Tensor) -> Tensor:
    """The smooth step whose derivative the surrogate is."""
    if name == "atan":
        return torch.atan(math.pi / 2 * alpha * z) / math.pi + 0.5
    if name == "sigmoid":
        return torch.sigmoid(alpha * z)
    return z / (1 + alpha * z.abs())


@pytest.mark.parametrize(("name", "alpha"), SURROGATES)
def test_each_surrogate_is_the_slope_of_its_smooth_step(name: str, alpha: float) -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64) + 1e-3
    h = 1e-6
    slope = (primitive(name, alpha, z + h) - primitive(name, alpha, z - h)) / (2 * h)
    assert torch.allclose(ops.surrogate_slope(z, name, alpha), slope, rtol=1e-5, atol=1e-8)
    if alpha != 5:
        assert torch.equal(ops.surrogate_slope(z, name), ops.surrogate_slope(z, name, alpha))
    z.requires_grad_()
    ops.surrogate_step(z, name, alpha).sum().backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("learned", [False, True], ids=["half", "learned"])
@pytest.mark.parametrize(("name", "alpha"), SURROGATES)
def test_fused_neurons_equal_naive(name: str, alpha: float, learned: bool) -> None:
    batch, time, channels = 3, 33, 17
    x, start = 2 * torch.randn(batch, time, channels), torch.randn(batch, channels)
    k = torch.rand(channels) * 0.9 + 0.05 if learned else None
    weight, weight_after = torch.randn(batch, time, channels), torch.randn(batch, channels)
    results = []
    for run in (ops.lif, ops.naive_lif):
        inputs = [t.clone().requires_grad_() for t in (x, start, k) if t is not None]
        spikes, after = run(*inputs, *([] if learned else [None]), name, alpha)
        total = (spikes * weight).sum() + (after * weight_after).sum()
        results.append([spikes, after, *torch.autograd.grad(total, inputs)])
    (spikes, after, *found), (other, other_after, *expected) = results
    assert torch.equal(spikes, other)
    assert torch.equal(after, other_after)
    assert 0.05 < float(spikes.detach().mean()) < 0.5
    for one, two in zip(found, expected, strict=True):
        assert relative(one, two) < 2e-6


def test_naive_neurons_with_a_learned_decay_pass_gradcheck() -> None:
    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, start, k = numbers(2, 5, 3), numbers(2, 3), torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: ops.naive_lif(*a, step=torch.sigmoid), (x, start, k.requires_grad_())
    )
    w = torch.randn(9, dtype=torch.float64, requires_grad=True)
    k32 = ops.decay(w.float())
    assert torch.allclose(k32.double(), torch.sigmoid(w), atol=1e-7)
    (grad,) = torch.autograd.grad(k32.sum(), w)
    assert torch.allclose(grad, torch.sigmoid(w) * (1 - torch.sigmoid(w)), atol=1e-6)


def test_any_number_of_threads_gives_the_decay_the_same_gradient() -> None:
    x, k = 2 * torch.randn(3, 200, 200), torch.rand(200).requires_grad_()
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            spikes, _ = ops.lif(x, None, k)
            results.append(torch.autograd.grad((spikes * x).sum(), k)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_learned_decay_starts_as_the_usual_neuron_and_learns() -> None:
    x = 2 * torch.randn(2, 12, 5, requires_grad=True)
    usual, learned = LIF(5), PLIF(5)
    assert not list(usual.state_dict())
    assert list(learned.state_dict()) == ["w"]
    for one, two in zip(usual(x), learned(x), strict=True):
        assert torch.equal(one, two)
    learned(x)[0].sum().backward()
    assert learned.w.grad is not None
    assert learned.w.grad.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neuron": "if"}, r"neuron is 'if'; known are \['lif', 'plif', 'none'\]"),
        ({"surrogate": "relu"}, "surrogate is 'relu'; known are"),
        ({"surrogate_alpha": -1.0}, "surrogate_alpha is -1.0"),
        ({"surrogate_alpha": math.nan}, "surrogate_alpha is nan"),
    ],
)
def test_impossible_neurons_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SpikeGPTConfig(**options)  # type: ignore[arg-type]


def random_model(neuron: str, **options: object) -> SpikeGPT:
    """A model whose neurons fire, with decays that differ from one half."""
    values: dict[str, object] = {"vocab_size": 256, "ctx_len": 24, "n_layer": 3, "n_embd": 32}
    config = SpikeGPTConfig(**(values | {"neuron": neuron, "n_ffn": 40} | options))  # type: ignore[arg-type]
    model = SpikeGPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.add_(0.5 * torch.randn_like(parameter))
            elif name.endswith(".w"):
                parameter.normal_()
    return model


def export(model: SpikeGPT, folder: Path) -> Path:
    export_model(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "bytes"}))
    return folder


@pytest.mark.parametrize("variant", ["RWKV", "RWKV-ffnPre"])
@pytest.mark.parametrize("neuron", ["lif", "plif", "none"])
def test_training_and_engine_have_the_same_spikes(
    tmp_path: Path, neuron: str, variant: str
) -> None:
    model = random_model(neuron, model_type=variant)
    assert SpikeGPTConfig.from_model_config(model.config.to_model_config()) == SpikeGPTConfig(
        256, 24, variant, 3, 32, n_ffn=40, neuron=neuron
    )
    engine = spikelet.load(export(model, tmp_path))
    assert engine.config.neuron == neuron
    ids = torch.randint(0, 256, (1, 60))
    spikes: list[Tensor] = []
    with torch.no_grad():
        model.hidden(ids, spikes=spikes)
        logits = model(ids)[0]
    trace = engine.trace(ids[0].tolist())
    found = engine.forward(ids[0].tolist(), engine.new_state(), all_logits=True)
    assert (torch.from_numpy(found) - logits).abs().max() < 2e-4
    assert trace.relu2_density.shape == (3, 60)
    if neuron == "none":
        assert not spikes
        assert trace.spikes.shape == (0, 2, 60, 32)
        assert trace.membranes.size == trace.firing_rates.size == 0
        return
    assert torch.equal(torch.cat(spikes), torch.from_numpy(trace.spikes.reshape(6, 60, 32)))
    assert 0.02 < float(torch.cat(spikes).mean()) < 0.6


def test_a_learned_decay_is_that_of_the_reference(tmp_path: Path) -> None:
    folder = export(random_model("plif", spike_embedding=False), tmp_path)
    ids = torch.randint(0, 256, (60,)).tolist()
    weights = load_file(folder / "model.safetensors")
    logits, spikes = naive_spikegpt(weights, ids, spike_embedding=False)
    engine = spikelet.load(folder)
    assert np.array_equal(engine.trace(ids).spikes, spikes)
    found = engine.forward(ids, engine.new_state(), all_logits=True)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)


def test_folders_with_a_learned_decay_are_described_and_converted(tmp_path: Path) -> None:
    folder = export(random_model("plif"), tmp_path / "model")
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["info", str(folder)]) == 0
        assert main(["convert", str(folder), str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    assert "neurons plif" in out.getvalue()
    converted = spikelet.load(tmp_path / "half")
    assert converted.config.to_dict()["neuron"] == "plif"
    ids = [5, 200, 7, 7, 31]
    rounded = spikelet.load(folder, dtype="bf16")
    one, two = (m.forward(ids, m.new_state()) for m in (converted, rounded))
    assert one.tobytes() == two.tobytes()


def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    folder = export(random_model("plif"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"neuron": "lif"}))
    with pytest.raises(SpikeletError, match=r"blocks\.0\.lif1\.w"):
        spikelet.load(folder)
