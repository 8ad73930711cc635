"""Fused operators against their naive twins, and the twins against finite differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from spikelet import _spikelet  # noqa: E402
from spikelet.training import loss, ops  # noqa: E402
from spikelet.training.ops import operators  # noqa: E402

# Odd sizes on purpose: channel tails of the 16-lane blocks, one token, one row.
SIZES = [(1, 1, 1), (2, 7, 16), (3, 33, 17), (2, 64, 50), (1, 5, 130)]
IDS = [f"B{b}-T{t}-C{c}" for b, t, c in SIZES]


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-2))


def wkv_inputs(batch: int, time: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    w = -torch.exp(torch.randn(channels, dtype=dtype))
    u = torch.randn(channels, dtype=dtype)
    k, v = 3 * torch.randn(2, batch, time, channels, dtype=dtype)
    aa = torch.randn(batch, channels, dtype=dtype)
    bb = torch.rand(batch, channels, dtype=dtype) + 0.5
    pp = torch.randn(batch, channels, dtype=dtype)
    return [x.requires_grad_() for x in (w, u, k, v)] + [torch.stack((aa, bb, pp), dim=1)]


def test_wkv_of_two_tokens_by_hand() -> None:
    w, u = torch.tensor([-0.5]), torch.tensor([0.25])
    k, v = torch.tensor([[[0.1], [0.7]]]), torch.tensor([[[2.0], [-3.0]]])
    y, _ = ops.wkv4(w, u, k, v)
    past, present = math.exp(0.1), math.exp(0.25 + 0.7)
    second = (past * 2 - present * 3) / (past + present)
    assert y.flatten().tolist() == pytest.approx([2.0, second], rel=1e-6)


def test_wkv_survives_keys_that_overflow_exp() -> None:
    k = torch.tensor([[[500.0], [-500.0], [900.0], [899.0]]])
    v = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    y, _ = ops.wkv4(torch.tensor([-1.0]), torch.tensor([0.0]), k, v)
    # The last key is e^-1 of the one before it, which has not decayed yet.
    last = (3 + 4 * math.exp(-1)) / (1 + math.exp(-1))
    assert y.flatten().tolist() == pytest.approx([1.0, 1.0, 3.0, last], rel=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "carried"])
def test_wkv_equals_naive(size: tuple[int, int, int], fresh: bool) -> None:
    *inputs, state = wkv_inputs(*size, torch.float32)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    start = None if fresh else state.requires_grad_()
    start64 = None if fresh else state.detach().double().requires_grad_()
    y, after = ops.wkv4(*inputs, start)
    y64, after64 = ops.naive_wkv4(*doubles, start64)
    assert relative(y, y64) < 1e-6
    assert relative(after, after64) < 1e-6
    # aa and bb mean something together with pp only, so the loss looks at aa / bb.
    weight, weight_after = torch.randn_like(y64), torch.randn_like(after64[:, 0])
    (
        (y * weight.float()).sum() + (after[:, 0] / after[:, 1] * weight_after.float()).sum()
    ).backward()
    ((y64 * weight).sum() + (after64[:, 0] / after64[:, 1] * weight_after).sum()).backward()
    for found, expected in zip(inputs, doubles, strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert relative(found.grad, expected.grad) < 2e-5
    if start is not None and start64 is not None:
        assert start.grad is not None
        assert start64.grad is not None
        assert relative(start.grad[:, :2], start64.grad[:, :2]) < 2e-5


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "carried"])
def test_lif_equals_naive(size: tuple[int, int, int], fresh: bool) -> None:
    batch, time, channels = size
    x = (2 * torch.randn(batch, time, channels)).requires_grad_()
    start = None if fresh else torch.randn(batch, channels).requires_grad_()
    spikes, after = ops.lif(x, start)
    other = x.detach().clone().requires_grad_()
    other_start = None if start is None else start.detach().clone().requires_grad_()
    expected, expected_after = ops.naive_lif(other, other_start)
    assert torch.equal(spikes, expected)
    assert torch.equal(after, expected_after)
    weight, weight_after = torch.randn_like(spikes), torch.randn_like(after)
    ((spikes * weight).sum() + (after * weight_after).sum()).backward()
    ((expected * weight).sum() + (expected_after * weight_after).sum()).backward()
    assert x.grad is not None
    assert other.grad is not None
    assert relative(x.grad, other.grad) < 1e-6
    if start is not None and other_start is not None:
        assert start.grad is not None
        assert other_start.grad is not None
        assert relative(start.grad, other_start.grad) < 1e-6


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_token_mix_equals_naive(size: tuple[int, int, int], count: int) -> None:
    batch, time, channels = size

    def fresh(*shape: int) -> Tensor:
        return torch.randn(*shape).requires_grad_()

    x, last = fresh(batch, time, channels), fresh(batch, channels)
    mixes = [fresh(channels) for _ in range(count)]
    weights = [torch.randn(batch, time, channels) for _ in range(count)]
    gradients = []
    for mix in (ops.token_mix, ops.naive_token_mix):
        outputs = mix(x, last, mixes)
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        assert isinstance(total, Tensor)
        gradients.append([*outputs, *torch.autograd.grad(total, [x, last, *mixes])])
    for found, expected in zip(*gradients, strict=True):
        assert relative(found, expected) < 2e-6


def test_token_mix_in_bfloat16_rounds_to_nearest() -> None:
    x, last, mix = torch.randn(2, 9, 33), torch.randn(2, 33), torch.rand(33).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = ops.token_mix(x, last, [mix])
    (expected,) = ops.token_mix(x, last, [mix])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    weight = torch.randn_like(found)
    (grad,) = torch.autograd.grad((found * weight).sum(), mix)
    (exact,) = torch.autograd.grad((expected * weight.float()).sum(), mix)
    assert relative(grad, exact) < 1e-6
    extreme = torch.tensor([[[float("nan"), float("inf"), -3.4e38, 1e-45, 65535.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        (kept,) = ops.token_mix(extreme, torch.zeros(1, 5), [torch.ones(5)])
    # NaN aside: inf * 1 + 0 stays inf.
    assert kept[0, 0, 0].isnan()
    assert torch.equal(kept[0, 0, 1:], extreme[0, 0, 1:].bfloat16())


@pytest.mark.parametrize("op", ["wkv4", "lif", "mix"])
def test_chunks_with_state_equal_the_whole(op: str) -> None:
    batch, time, channels = 2, 21, 19
    w, u, k, v, _ = wkv_inputs(batch, time, channels, torch.float32)
    weight = torch.randn(batch, time, channels)

    def run(sizes: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        state, outputs = None, []
        for kc, vc in zip(k.split(sizes, 1), v.split(sizes, 1), strict=True):
            if op == "wkv4":
                y, state = ops.wkv4(w, u, kc, vc, state)
            elif op == "lif":
                y, state = ops.lif(kc + vc, state)
            else:
                before = torch.zeros(batch, channels) if state is None else state
                y, state = ops.token_mix(kc * vc, before, [u])[0], (kc * vc)[:, -1]
            outputs.append(y)
        whole = torch.cat(outputs, 1)
        used = [w, u, k, v] if op == "wkv4" else [k, v]
        return whole, torch.autograd.grad((whole * weight).sum(), used)

    expected, gradients = run([time])
    for sizes in ([1] * time, [5, 15, 1]):
        found, chunked = run(sizes)
        assert torch.equal(found, expected)
        for one, other in zip(chunked, gradients, strict=True):
            assert relative(one, other) < 1e-5


def test_any_number_of_threads_gives_the_same_bits() -> None:
    batch, time, channels = 3, 200, 200  # large enough to be split
    w, u, k, v, _ = wkv_inputs(batch, time, channels, torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, after = ops.wkv4(w, u, k, v)
            spikes, membrane = ops.lif(y + k)
            (mixed,) = ops.token_mix(spikes * v, membrane, [u])
            grads = torch.autograd.grad((mixed * v.detach()).sum(), [w, u, k, v])
            results.append([y, after, spikes, membrane, mixed, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_naive_twins_pass_gradcheck() -> None:
    w, u, k, v, state = wkv_inputs(2, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *a: ops.naive_wkv4(*a)[0], (w, u, k, v, state))
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    last = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: ops.naive_token_mix(a[0], a[1], [a[2]]), (x, last, w)
    )
    # A smooth step in place of the jump: the rest of the neuron, its reset included, is checked.
    assert torch.autograd.gradcheck(lambda a, b: ops.naive_lif(a, b, step=torch.sigmoid), (x, last))


def test_surrogate_gradient_is_atan_of_alpha_2() -> None:
    z = torch.tensor([-2.0, -0.5, -0.0, 0.0, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    spikes = ops.atan_step(z)
    assert spikes.tolist() == [0, 0, 1, 1, 1, 1]
    spikes.sum().backward()
    assert z.grad is not None
    expected = [1 / (1 + (math.pi * x) ** 2) for x in z.tolist()]
    assert z.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_reset_is_part_of_the_gradient() -> None:
    # One token: h = x / 2 and dL/dx = (g_spike s' + g_v (1 - spike - h s')) / 2, s' at h - 1.
    for value in (1.0, 2.0, 5.0):
        x = torch.full((1, 1, 1), value, requires_grad=True)
        spikes, membrane = ops.lif(x)
        (3 * spikes.sum() + 7 * membrane.sum()).backward()
        h = value / 2
        slope = 1 / (1 + (math.pi * (h - 1)) ** 2)
        expected = (3 * slope + 7 * ((0 if h >= 1 else 1) - h * slope)) / 2
        assert x.grad is not None
        assert x.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tokens", [3, 512, 1100])
def test_head_loss_equals_naive(tokens: int) -> None:
    hidden = torch.randn(tokens, 20, requires_grad=True)
    weight = torch.randn(37, 20, requires_grad=True)
    targets = torch.randint(0, 37, (tokens,))
    results = []
    for head_loss in (loss.head_loss, loss.naive_head_loss):
        value = head_loss(hidden, weight, targets, 0.01)
        results.append([value, *torch.autograd.grad(2.5 * value, [hidden, weight])])
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-5)
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        assert relative(found, expected) < 1e-5


def test_l2wrap_adds_to_the_largest_logit_only() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.5, -1.0, 0.0]])
    identity, targets = torch.eye(3), torch.tensor([0, 1])
    grads = []
    for strength in (0.0, 1e-2):
        leaf = logits.clone().requires_grad_()
        loss.head_loss(leaf, identity, targets, strength).backward()
        grads.append(leaf.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    added = grads[1] - grads[0]
    expected = torch.tensor([[0, 1e-2 / 2 * 4.0, 0], [1e-2 / 2 * 0.5, 0, 0]])
    assert torch.allclose(added, expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # in opcheck itself
def test_operators_are_well_registered() -> None:
    w, u, k, v, state = wkv_inputs(2, 5, 8, torch.float32)
    torch.library.opcheck(operators.wkv4, (w, u, k, v, state))
    x, membrane = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    decay = torch.rand(8, requires_grad=True)
    torch.library.opcheck(operators.lif, (x, membrane, None, "atan", 2.0))
    torch.library.opcheck(operators.lif, (x, membrane, decay, "sigmoid", 4.0))
    torch.library.opcheck(operators.sigmoid, (decay,))
    torch.library.opcheck(operators.mix, (x, membrane, [w, u], torch.float32))


def test_wrong_arrays_are_refused() -> None:
    y = torch.empty(1, 2, 3).numpy()
    k = torch.zeros(1, 2, 3).numpy()
    with pytest.raises(ValueError, match=r"w has 2 elements, shape \[channels\] needs 3"):
        _spikelet.wkv4_forward(k[0, 0, :2], k[0, 0], k, k, y)
    with pytest.raises(ValueError, match="C-contiguous"):
        _spikelet.lif_forward(torch.zeros(1, 3, 2).transpose(1, 2).numpy(), y)
    with pytest.raises(ValueError, match=r"no tensor can be \[1, 0, 3\]"):
        _spikelet.lif_forward(k[:, :0], y[:, :0])
    with pytest.raises(ValueError, match="4 mixes for 4 outputs"):
        _spikelet.mix_forward(
            k, k[:, 0], [k[0, 0]] * 4, [torch.empty(1, 2, 3).numpy() for _ in "1234"]
        )
