"""SpikeGPT's configuration, initialisation and behaviour beyond the golden numbers."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from spikelet.training import SpikeGPT, SpikeGPTConfig  # noqa: E402
from spikelet.training.models.blocks import relu_squared  # noqa: E402


def tiny(**options: object) -> SpikeGPT:
    values: dict[str, object] = {"vocab_size": 40, "ctx_len": 16, "n_layer": 3, "n_embd": 12}
    return SpikeGPT(SpikeGPTConfig(**(values | options)))  # type: ignore[arg-type]


def test_d05_config_takes_its_fields_by_position_and_by_name() -> None:
    by_position = SpikeGPTConfig(50, 32, "RWKV", 2, 16)
    by_name = SpikeGPTConfig(vocab_size=50, ctx_len=32, model_type="RWKV", n_layer=2, n_embd=16)
    assert by_position == by_name


def test_d06_config_defaults_are_the_authors() -> None:
    config = SpikeGPTConfig()
    found = (
        config.vocab_size, config.ctx_len, config.model_type, config.n_layer, config.n_embd,
        config.intermediate_size, config.dropout,
    )  # fmt: skip
    assert found == (30500, 1024, "RWKV", 12, 768, 3072, 0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "GPT"}, "model_type is 'GPT'; known are 'RWKV', 'RWKV-ffnPre'"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_configs_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikeGPTConfig(**options)  # type: ignore[arg-type]


def test_model_folder_config_goes_there_and_back() -> None:
    config = SpikeGPTConfig(50, 32, "RWKV-ffnPre", 2, 16, n_ffn=40, spike_embedding=False)
    written = config.to_model_config()
    assert written["variant"] == "rwkv-ffnpre"
    assert SpikeGPTConfig.from_model_config(written) == config
    with pytest.raises(ValueError, match="variant is 'x'"):
        SpikeGPTConfig.from_model_config(written | {"variant": "x"})
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        SpikeGPTConfig.from_model_config(written | {"model_type": "gpt2"})


def test_d07_d08_parameters_carry_the_authors_names() -> None:
    names = set(tiny().state_dict())
    for part in ("time_decay", "time_first", "time_mix_k", "key.weight", "output.weight"):
        assert f"blocks.2.att.{part}" in names
    assert "blocks.0.ln0.weight" in names
    assert "blocks.1.ln0.weight" not in names
    assert {"emb.weight", "ln_out.bias", "head.weight", "blocks.0.ffn.time_mix_r"} <= names
    pre = set(tiny(model_type="RWKV-ffnPre").state_dict())
    assert "blocks.0.ffnPre.value.weight" in pre
    assert not any(name.startswith("blocks.0.att") for name in pre)
    assert "blocks.1.att.key.weight" in pre


def test_initialisation_is_the_authors() -> None:
    model = tiny(n_embd=24, n_ffn=96)
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("att.key.weight", "receptance.weight", "att.output.weight", "ffn.value.weight")
        ):
            assert not parameter.any(), name
    att = model.blocks[1].att
    assert att is not None
    decay = att.time_decay.tolist()
    assert decay[0] == -5
    assert decay[-1] == pytest.approx(3)
    assert decay[12] == pytest.approx(-5 + 8 * (12 / 23) ** (0.7 + 1.3 / 2), rel=1e-5)
    first = [math.log(0.3) + x for x in (0.0, 0.5, -0.5)]
    assert att.time_first[:3].tolist() == pytest.approx(first, rel=1e-5)
    assert att.time_mix_k.shape == (1, 1, 24)
    assert att.time_mix_v[0, 0, 6].item() == pytest.approx((6 / 24) ** (2 / 3) + 0.15, rel=1e-5)
    assert att.time_mix_r[0, 0, 6].item() == pytest.approx((6 / 24) ** (1 / 3), rel=1e-5)
    # Orthogonal with gain sqrt(rows / columns) = 2; the head half of its own.
    key = model.blocks[0].ffn.key.weight
    assert torch.allclose(key.T @ key, 4 * torch.eye(24), atol=1e-4)
    head = model.head.weight
    assert torch.allclose(head.T @ head, 0.25 * 40 / 24 * torch.eye(24), atol=1e-4)
    emb = model.emb.weight
    assert torch.allclose(emb.T @ emb, 1e-8 * 40 * torch.eye(24), atol=1e-10)


def test_squared_relu_has_the_bits_and_gradients_of_its_parts() -> None:
    x = torch.randn(3, 50, requires_grad=True)
    weight = torch.randn(3, 50)
    fused, parts = relu_squared(x), torch.relu(x) * torch.relu(x)
    assert torch.equal(fused, parts)
    grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (fused, parts)]
    assert torch.equal(*grads)
    assert torch.autograd.gradcheck(relu_squared, (x.detach().double().requires_grad_(),))


def test_fresh_logits_are_small_and_the_first_step_moves_every_matrix() -> None:
    model = tiny(dropout=0.0)
    ids = torch.randint(0, 40, (2, 16))
    loss = model(ids, ids)
    assert loss.item() == pytest.approx(math.log(40), abs=0.5)
    loss.backward()
    assert model.emb.weight.grad is not None
    assert model.emb.weight.grad.any()


def test_chunks_with_carried_state_train_like_the_whole() -> None:
    model = tiny(dropout=0.0, spike_embedding=False).double().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    ids, weight = torch.randint(0, 40, (2, 15)), torch.randn(2, 15, 12)

    def gradients(sizes: list[int]) -> list[torch.Tensor]:
        state, outputs = None, []
        for part in ids.split(sizes, dim=1):
            hidden, state = model.hidden(part, state)
            outputs.append(hidden)
        model.zero_grad()
        (torch.cat(outputs, 1) * weight).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for found, expected in zip(gradients([4, 1, 10]), gradients([15]), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def test_detached_state_cuts_the_graph() -> None:
    model = tiny(dropout=0.0)
    _, state = model.hidden(torch.randint(0, 40, (1, 5)))
    assert any(part.requires_grad for part in state[0])
    assert not any(part.requires_grad for layer in state for part in layer.detach())


def test_dropout_works_in_training_only() -> None:
    model, ids = tiny(dropout=0.5), torch.randint(0, 40, (1, 8))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_generation_is_seeded_and_stops() -> None:
    model = tiny()
    drawn = [
        model.generate([1, 2], 12, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 12
    assert model.generate([1], 5, temperature=0.0) == model.generate([1], 5, temperature=0.0)
    assert model.generate([1], 5, temperature=0.0, stop_ids=list(range(40))) == []


def test_firing_rates_are_shares_per_neuron_layer() -> None:
    rates = tiny().firing_rates(torch.randint(0, 40, (2, 16)))
    assert len(rates) == 6
    assert all(0 <= rate <= 1 for rate in rates)


def test_d09_the_published_sizes_can_be_built_and_take_a_step() -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with torch.device("meta"):
        for layers in (12, 24):
            model = SpikeGPT(SpikeGPTConfig(50277, 1024, "RWKV", layers, 768, fused=False))
            assert len(model.blocks) == layers
            # Shapes without numbers: what a step of 216M weights computes fits together.
            model(ids.to("meta"), ids.to("meta")).backward()
            assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    # With numbers, on the CPU, and a small vocabulary.
    with torch.device("meta"):
        wide = SpikeGPT(SpikeGPTConfig(64, 8, "RWKV", 2, 768))
    model = wide.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    loss = model(ids, ids)
    loss.backward()
    assert loss.isfinite()
