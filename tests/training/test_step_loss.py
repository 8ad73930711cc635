"""One step: carried state, targets that do not count, penalties, records, checkpointing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import spikelet  # noqa: E402
from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    RWKV4,
    ActivityRecord,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
    export_model,
)
from spikelet.training.loss import head_loss, naive_head_loss  # noqa: E402

Model = SpikeGPT | RWKV4
KINDS = ["lif", "plif", "none", "rwkv4"]


def tiny(kind: str = "lif", fused: bool = True, **options: object) -> Model:
    """A model whose neurons fire."""
    torch.manual_seed(3)
    model: Model
    if kind == "rwkv4":
        model = RWKV4(RWKV4Config(40, 16, n_layer=3, n_embd=24, fused=fused))
    else:
        usual = {"spike_embedding": False, "dropout": 0.0, "neuron": kind, "fused": fused}
        values = usual | options
        model = SpikeGPT(SpikeGPTConfig(40, 16, "RWKV", 3, 24, **values))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def batch(time: int = 16) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 40, (2, time + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_with_detached_state_are_truncated_back_propagation(kind: str) -> None:
    model = tiny(kind)
    ids, targets = batch(15)
    state, found = None, []
    for part, wanted in zip(ids.split([4, 1, 10], 1), targets.split([4, 1, 10], 1), strict=True):
        loss, after = model.step_loss(part, wanted, state)
        found.append(gradients(model, loss))
        state = [layer.detach() for layer in after]
    # By hand: the state before a piece comes from a pass over all before it, without a graph.
    start = 0
    for length, grads in zip([4, 1, 10], found, strict=True):
        with torch.no_grad():
            before = model.hidden(ids[:, :start])[1] if start else None
        hidden, _ = model.hidden(ids[:, start : start + length], before)
        loss = head_loss(hidden, model.head.weight, targets[:, start : start + length])
        for one, two in zip(grads, gradients(model, loss), strict=True):
            assert (one - two).norm() <= 1e-5 * two.norm() + 1e-8
        start += length


def test_t28_every_batch_starts_from_a_fresh_state() -> None:
    model = tiny()
    ids, targets = batch()
    assert_same(gradients(model, model(ids, targets)), gradients(model, model(ids, targets)))
    carried, _ = model.step_loss(ids, targets, model.hidden(ids)[1])
    assert carried.item() != model(ids, targets).item()


def test_d03_targets_of_minus_100_do_not_count() -> None:
    hidden = torch.randn(2, 600, 12, requires_grad=True)
    weight = torch.randn(40, 12, requires_grad=True)
    targets = torch.randint(0, 40, (2, 600))
    padded = targets.clone()
    padded[0, 5:9] = padded[1, 200:] = -100
    counts = padded != -100
    results = []
    for loss_of in (head_loss, naive_head_loss):
        loss = loss_of(hidden, weight, padded, 0.01)
        results.append([loss, *torch.autograd.grad(loss, [hidden, weight])])
    loss = naive_head_loss(hidden[counts], weight, targets[counts], 0.01)
    results.append([loss, *torch.autograd.grad(loss, [hidden, weight])])
    for found in results[:2]:
        for one, two in zip(found, results[2], strict=True):
            assert (one - two).norm() <= 1e-5 * two.norm()
    assert not results[0][1][1, 200:].any()
    nothing = torch.full_like(targets, -100)
    for loss_of in (head_loss, naive_head_loss):
        loss = loss_of(hidden, weight, nothing)
        assert loss.item() == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.parametrize("kind", ["lif", "plif"])
def test_a_rate_penalty_adds_the_mean_firing_rate(kind: str) -> None:
    model = tiny(kind)
    ids, targets = batch()
    record = ActivityRecord()
    loss, _ = model.step_loss(ids, targets, rate_penalty=0.7, record=record)
    spikes: list[Tensor] = []
    hidden, _ = model.hidden(ids, spikes=spikes)
    rate = torch.cat(spikes).mean()
    expected = head_loss(hidden, model.head.weight, targets) + 0.7 * rate
    for one, two in zip(gradients(model, loss), gradients(model, expected), strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm() + 1e-8
    assert record.firing_rate == pytest.approx(rate.item())
    assert record.loss == pytest.approx((loss - 0.7 * rate).item())


def test_training_against_the_penalty_makes_neurons_quieter() -> None:
    rates = []
    for penalty in (0.0, 20.0):
        model = tiny()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(15):
            loss, _ = model.step_loss(*batch(), rate_penalty=penalty)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rates.append(sum(model.firing_rates(batch()[0])))
    assert rates[1] < 0.8 * rates[0]


@pytest.mark.parametrize("kind", ["none", "rwkv4"])
def test_a_rate_penalty_without_neurons_is_refused(kind: str) -> None:
    with pytest.raises(OptionError, match=r"rate_penalty is 0\.1, but the model has no neurons"):
        tiny(kind).step_loss(*batch(), rate_penalty=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_tells_rates_and_densities(tmp_path: Path, kind: str) -> None:
    model = tiny(kind).eval()
    ids, targets = batch()
    record = ActivityRecord()
    loss, _ = model.step_loss(ids, targets, record=record)
    sites = [] if kind in ("none", "rwkv4") else ["lif1", "lif2"]
    names = [f"blocks.{layer}.{site}" for layer in range(3) for site in [*sites, "relu2"]]
    assert list(record.rates) == names
    neurons = [value for name, value in record.rates.items() if "lif" in name]
    assert neurons == pytest.approx(model.firing_rates(ids))
    assert record.loss == loss.item()
    # The engine counts the same, row by row.
    export_model(model, tmp_path)
    engine = spikelet.load(tmp_path)
    density = [engine.trace(row.tolist()).relu2_density.mean(axis=1) for row in ids]
    densities = [value for name, value in record.rates.items() if "relu2" in name]
    assert densities == pytest.approx((sum(density) / 2).tolist(), abs=1e-6)
    assert record.relu2_density == pytest.approx(sum(densities) / 3)
    # A second pass: the mean of both.
    model.step_loss(ids[:, :4], targets[:, :4], record=record)
    alone = ActivityRecord()
    assert (alone.loss, alone.firing_rate, alone.rates) == (None, None, {})
    model.step_loss(ids[:, :4], targets[:, :4], record=alone)
    both = ActivityRecord()
    model.step_loss(ids, targets, record=both)
    for name, value in record.rates.items():
        assert value == pytest.approx((alone.rates[name] + both.rates[name]) / 2)
    assert record.firing_rate is None if not sites else record.firing_rate > 0


def test_a_record_takes_no_extra_pass_and_changes_nothing() -> None:
    model, calls = tiny(), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    with_record = gradients(model, model.step_loss(*batch(), record=ActivityRecord())[0])
    assert len(calls) == 3
    assert_same(with_record, gradients(model, model.step_loss(*batch())[0]))


class _Kept:
    """Bytes that autograd keeps between forward and backward."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize("kind", ["plif", "rwkv4"])
def test_gradient_checkpointing_gives_the_same_and_keeps_less(kind: str) -> None:
    results, kept = [], []
    for checkpointing in (False, True):
        model = tiny(kind, dropout=0.3)
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(4)
        record = ActivityRecord()
        pack = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = model.step_loss(*batch(), record=record)
        kept.append(pack.bytes)
        results.append([*gradients(model, loss), torch.tensor(list(record.rates.values()))])
    assert_same(*results)
    # What checkpointing itself holds: the residual stream before each block.
    streams = 3 * batch()[0].numel() * 24 * 4
    assert kept[1] + streams < 0.4 * kept[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "naive"])
def test_autocast_keeps_state_and_gradients_in_float32(kind: str, fused: bool) -> None:
    model = tiny(kind, fused=fused)
    ids, targets = batch()
    exact = model(ids, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, state = model.step_loss(ids, targets)
        assert model(ids).dtype == torch.bfloat16  # the head is a matrix product too
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 0.5
    assert all(part.dtype == torch.float32 for layer in state for part in layer)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients(model, loss))
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = model.step_loss(ids, targets, [layer.detach() for layer in state])
    assert again.isfinite()


def compiled_equals_eager(kind: str, backend: str) -> None:
    torch._dynamo.reset()
    model = tiny(kind)
    ids, targets = batch()
    step = torch.compile(model.step_loss, backend=backend, fullgraph=True)
    _, before = model.step_loss(ids, targets)
    state = [layer.detach() for layer in before]
    results = [gradients(model, run(ids, targets, state)[0]) for run in (model.step_loss, step)]
    for one, two in zip(*results, strict=True):
        assert (one - two).norm() <= 1e-4 * two.norm() + 1e-7


@pytest.mark.parametrize("kind", ["plif", "rwkv4"])
def test_the_step_can_be_traced_whole(kind: str) -> None:
    compiled_equals_eager(kind, "aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.timeout(300)  # the C++ compiler, cold, on a busy machine
def test_torch_compile_gives_the_same() -> None:
    compiled_equals_eager("plif", "inductor")
