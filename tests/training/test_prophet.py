"""Prophets: shape, drafts in training, losses, acceptance."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import RWKV4, Prophet, ProphetConfig, RWKV4Config, SpikeGPT  # noqa: E402
from spikelet.training.prophet.acceptance import (  # noqa: E402
    Chain,
    coupled_acceptance,
    measure,
    token_acceptance,
)
from spikelet.training.prophet.drafts import (  # noqa: E402
    guesses,
    prophet_loss,
    teach,
    window_count,
)
from spikelet.training.prophet.module import frequent_ids, weights_per_token  # noqa: E402
from training.tiny import tiny_model  # noqa: E402


def tiny_target(spiking: bool = True) -> SpikeGPT | RWKV4:
    """A model whose logits differ from token to token."""
    torch.manual_seed(3)
    model = tiny_model() if spiking else RWKV4(RWKV4Config(300, 16, 2, 24))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def tiny_prophet(target: SpikeGPT | RWKV4, **options: object) -> Prophet:
    torch.manual_seed(4)
    shape: dict[str, object] = {"n_embd": 12, "draft_vocab": 40, "ctx_len": 16, **options}
    prophet = Prophet(ProphetConfig(**shape), target.config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in prophet.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return prophet


SHAPES = [
    {},
    {"block": "spikegpt"},
    {"tied_head": True},
    {"n_embd": 24, "tied_head": True, "n_layer": 2},
    {"num_leading": 1},
    {"num_leading": 3},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_is_a_draft(shape: dict[str, object]) -> None:
    """What training computes for many windows at once is what drafting computes for one."""
    target = tiny_target()
    prophet = tiny_prophet(target, **shape)
    ids = torch.randint(0, 300, (2, 12))
    lesson, _ = teach(target, ids[:, :-1], ids[:, 1:])
    head = target.head.weight
    steps, leading = 3, prophet.config.num_leading
    drafts = list(guesses(prophet, lesson, steps, head))
    windows = window_count(11, leading, steps)
    far = 0
    for row in range(2):
        residual, _ = target.residual(ids[row : row + 1, :-1])
        for window in range(windows):
            state = prophet.initial_state(1)
            x = torch.empty(0)
            for step in range(leading + steps - 1):
                at = window + step
                hidden = residual[:, at] if step < leading else prophet.stand_in(x[:, 0])
                token = target.embed(ids[row : row + 1, at + 1])
                fused = torch.cat([prophet.ln_hidden(hidden), prophet.ln_emb(token)], -1)
                x, state = prophet.run((fused @ prophet.fuse.weight.T)[:, None], state)
                if step < leading - 1:
                    continue
                judged, logits = drafts[step - leading + 1]
                # The guess after token at + 1 is judged by the model's distribution after it.
                assert range(11)[judged][window] == at + 1
                expected = prophet.logits(x[:, 0], head)[0]
                far += not torch.allclose(logits[row, window], expected, atol=1e-5)
    # Other shapes of products round otherwise, and may flip a spike.
    assert far <= (3 if shape.get("block") == "spikegpt" else 0)


def test_windows_begin_everywhere() -> None:
    assert window_count(512 - 1, 2, 5) == 512 - 7  # seq - prophet_train_length, R09
    assert window_count(5, 2, 4) == 0
    target = tiny_target()
    prophet = tiny_prophet(target)
    ids = torch.randint(0, 300, (1, 5))
    lesson, _ = teach(target, ids[:, :-1], ids[:, 1:])
    assert prophet_loss(prophet, lesson, num_steps=4).item() == 0.0


@pytest.mark.parametrize("loss", ["ce", "kl", "acceptance"])
def test_losses_are_what_they_say(loss: str) -> None:
    target = tiny_target()
    prophet = tiny_prophet(target)
    ids = torch.randint(0, 80, (2, 14))
    lesson, _ = teach(target, ids[:, :-1], ids[:, 1:])
    found = prophet_loss(prophet, lesson, loss=loss, num_steps=2, step_decay=0.5, temperature=0.7)
    values = []
    for judged, logits in guesses(prophet, lesson, 2):
        targets, losses = lesson.targets[:, judged].flatten(), []
        says = (lesson.logits[:, judged].flatten(0, 1) / 0.7).softmax(-1)[:, :40]
        for line, p, token in zip(logits.flatten(0, 1), says, targets, strict=True):
            hard = -line.log_softmax(-1)
            soft = -(line / 0.7).log_softmax(-1)
            accepted = torch.minimum(p, (-soft).exp()).sum()
            share = math.exp(-3 * float(accepted.detach()))
            if loss == "ce":
                losses += [hard[token]] if token < 40 else []
            elif loss == "kl":
                losses.append((p * soft).sum())
            else:
                losses.append(share * (p * soft).sum() + (1 - share) * (1 - accepted))
        values.append(torch.stack(losses).mean())
    assert float(found.detach()) == pytest.approx(
        float((values[0] + 0.5 * values[1]).detach()) / 1.5, rel=1e-5
    )


@pytest.mark.parametrize("loss", ["ce", "kl", "acceptance"])
@pytest.mark.parametrize("tied", [True, False])
def test_prophets_learn(loss: str, tied: bool) -> None:
    """On a text that repeats itself every prophet gets better, with every loss."""
    target = tiny_target(spiking=False)
    prophet = tiny_prophet(target, n_embd=24, tied_head=tied, draft_vocab=300)
    stream = np.tile(np.arange(7, dtype=np.uint16), 30)
    before = measure(prophet, target, stream, chains=(Chain(),))[0]
    ids = torch.from_numpy(stream.astype("int64"))[None]
    lesson, _ = teach(target, ids[:, :-1], ids[:, 1:])
    optimizer = torch.optim.AdamW(prophet.parameters(), 1e-2)
    for _ in range(30):
        value = prophet_loss(prophet, lesson, loss=loss, target_head=target.head.weight)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = measure(prophet, target, stream, chains=(Chain(),))[0]
    if loss != "ce":  # which learns the text and not the model
        assert after.each[0] > before.each[0] + 0.05
        assert sum(after.so_far) > sum(before.so_far)
    else:
        judged, logits = next(guesses(prophet, lesson, 1, target.head.weight))
        assert (logits.argmax(-1) == lesson.targets[:, judged]).float().mean() > 0.9


def test_shapes_follow_the_model() -> None:
    shape = ProphetConfig().for_model(256, 4096)
    assert (shape.n_embd, shape.n_ffn, shape.draft_vocab) == (128, 128, 1024)
    assert ProphetConfig().for_model(192, 256).draft_vocab == 256
    assert ProphetConfig().for_model(768, 50277).draft_vocab == 8192
    assert ProphetConfig(draft_vocab=999).for_model(16, 300).draft_vocab == 300
    target = tiny_target()
    prophet = tiny_prophet(target, tied_head=True)
    names = set(prophet.state_dict())
    assert "head.weight" not in names
    assert "up.weight" in names
    assert not any(name.startswith("blocks.0.ln0") for name in names)
    weights = sum(p.numel() for p in prophet.parameters())
    assert prophet.weights_per_step() == weights + 40 * 24
    everything = sum(p.numel() for p in target.parameters())
    assert weights_per_token(target) == everything - 300 * 24


def test_wrong_shapes_are_refused() -> None:
    for wrong in ({"block": "gru"}, {"n_layer": 0}, {"n_embd": -1}, {"num_leading": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            ProphetConfig(**wrong)  # type: ignore[arg-type]
    target = tiny_target()
    with pytest.raises(OptionError, match="must be 40 ids, ascending"):
        Prophet(ProphetConfig(draft_vocab=40), target.config, torch.arange(40).flip(0))
    prophet = tiny_prophet(target, tied_head=True)
    with pytest.raises(OptionError, match=r"needs the model's head\.weight"):
        prophet.logits(torch.zeros(1, 12))


def test_the_most_frequent_ids() -> None:
    stream = np.array([5, 5, 5, 2, 2, 9, 1, 1, 1, 1], np.uint16)
    assert frequent_ids(stream, 12, 3).tolist() == [1, 2, 5]
    assert frequent_ids(stream, 12, 6).tolist() == [0, 1, 2, 3, 5, 9]  # ties: the lower ids


def race(p: torch.Tensor, q: torch.Tensor) -> float:
    """The definition: ``sum_x 1 / sum_y max(p_y / p_x, q_y / q_x)``."""
    total = 0.0
    for x in range(len(p)):
        if p[x] > 0 and q[x] > 0:
            total += 1 / sum(max(p[y] / p[x], q[y] / q[x]) for y in range(len(p)))
    return float(total)


def test_acceptance_with_shared_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    for zeros in (0, 3):
        p, q = (torch.rand(9, generator=generator).double() for _ in range(2))
        p[:zeros], q[1 : 1 + zeros] = 0, 0
        p, q = p / p.sum(), q / q.sum()
        assert float(coupled_acceptance(p, q)) == pytest.approx(race(p, q), rel=1e-9)
        noise = torch.empty(200_000, 9).exponential_(generator=generator)
        same = ((noise / p).argmin(-1) == (noise / q).argmin(-1)).double().mean()
        assert float(coupled_acceptance(p, q)) == pytest.approx(float(same), abs=5e-3)
        total = float(token_acceptance(p, q))
        assert total / (2 - total) <= float(coupled_acceptance(p, q)) <= total
        # What q cannot say lies outside of it: the rest of p.
        part = p[3:], q[3:] / q[3:].sum()
        whole = torch.cat([torch.zeros(3), part[1]])
        assert float(coupled_acceptance(*part)) == pytest.approx(race(p, whole), rel=1e-9)
    assert float(coupled_acceptance(p, p)) == pytest.approx(1.0)


def test_chains() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert Chain().apply(logits).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert Chain(1.0, 0.7).apply(logits).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert Chain(0.0).apply(logits).tolist() == [1, 0, 0, 0]
    assert Chain(0.5).apply(logits)[0] == pytest.approx(0.25 / 0.365)
    assert [Chain(0).name, Chain().name, Chain(0.8, 0.95).name] == ["greedy", "t1", "t0.8p0.95"]


def test_measured_acceptance_is_that_of_the_definition() -> None:
    target = tiny_target()
    prophet = tiny_prophet(target)
    stream = np.random.default_rng(1).integers(0, 300, 41).astype(np.uint16)
    chains = (Chain(0.0), Chain(0.8, 0.9))
    whole = measure(prophet, target, stream, num_steps=2, chains=chains, chunk=100)
    ids = torch.from_numpy(stream.astype("int64"))[None]
    lesson, _ = teach(target, ids[:, :-1], ids[:, 1:])
    (first, one), (second, two) = guesses(prophet, lesson, 2)
    p = chains[1].apply(lesson.logits)[..., :40]
    a = torch.minimum(p[:, first], chains[1].apply(one)).sum(-1)
    b = torch.minimum(p[:, second], chains[1].apply(two)).sum(-1)
    assert whole[1].each == pytest.approx([a.mean().item(), b.mean().item()], rel=1e-5)
    assert whole[1].so_far == pytest.approx([a.mean().item(), (a * b).mean().item()], rel=1e-5)
    greedy = (one.argmax(-1) == lesson.logits[:, first].argmax(-1)).double().mean()
    assert whole[0].each[0] == pytest.approx(float(greedy))
    # In pieces the model's state goes on; only windows across the seams are missing.
    pieces = measure(prophet, target, stream, num_steps=2, chains=chains, chunk=20)
    assert pieces[1].each[0] == pytest.approx(whole[1].each[0], abs=0.1)
    assert set(whole[1].row()) >= {"t0.8p0.9_1", "t0.8p0.9_so_far_2", "t0.8p0.9_coupled_1"}
