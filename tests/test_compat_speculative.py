"""The names of lucidrains' package: the same functions, and none of its defects."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from spikelet.compat import speculative_decoding as compat  # noqa: E402
from spikelet.compat.speculative_decoding import (  # noqa: E402
    ModelWithProphetWrapper,
    base_decoding,
    speculative_decoding,
    speculative_decoding_with_prophet_model,
)
from spikelet.training import RWKV4, Prophet, ProphetConfig, RWKV4Config  # noqa: E402
from spikelet.training.prophet.drafts import window_count  # noqa: E402

VOCAB = 5


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def lively(module: torch.nn.Module, seed: int, scale: float = 0.4) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def small_model(seed: int = 1, vocab: int = VOCAB) -> RWKV4:
    torch.manual_seed(seed)
    return lively(RWKV4(RWKV4Config(vocab, 16, 2, 8)), seed)


def wrapped(
    leading: int = 2, draft_vocab: int = VOCAB, vocab: int = VOCAB
) -> ModelWithProphetWrapper:
    model = small_model(vocab=vocab)
    prophet = Prophet(ProphetConfig(n_embd=6, draft_vocab=draft_vocab), model.config)
    return ModelWithProphetWrapper(
        model, lively(prophet, 2), prophet_train_length=5, num_leading_start_tokens=leading
    )


# R07 to R09


def test_r07_arguments_are_checked() -> None:
    net = wrapped()
    for wrong in ({"num_leading_start_tokens": 0}, {"prophet_train_length": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ModelWithProphetWrapper(net.model, net.prophet, **wrong)
    with pytest.raises(ValueError, match="too few for windows of 5"):
        net(torch.zeros(1, 6, dtype=torch.long))
    assert net.prophet.fuse.bias is None


@pytest.mark.parametrize("leading", [1, 2, 3])
def test_r08_r09_losses(leading: int) -> None:
    net = wrapped(leading)
    ids = torch.randint(0, VOCAB, (2, 20))
    total, (main, prophet) = net(ids)
    assert total.detach() == pytest.approx(float(main + prophet), rel=1e-6)
    assert main.item() == pytest.approx(net.model(ids[:, :-1], ids[:, 1:]).item(), rel=1e-6)
    assert window_count(19, leading, net.prophet_train_length - 1) == 20 - 5 - (leading - 1)


def test_detached_the_model_gets_its_own_gradient_only() -> None:
    ids = torch.randint(0, VOCAB, (2, 20))
    gradients = []
    for detach in (True, False):
        net = wrapped()
        net.detach_model_embed_for_prophet = detach
        net(ids)[0].backward()
        gradients.append(net.model.blocks[1].att.value.weight.grad)
    alone = small_model()
    alone(ids[:, :-1], ids[:, 1:]).backward()
    assert torch.equal(gradients[0], alone.blocks[1].att.value.weight.grad)
    assert not torch.equal(gradients[0], gradients[1])


# R14, R15, R18 to R22

GREEDY = {"temperature": 0.0}


def test_r14_base_decoding_has_the_length_asked_for() -> None:
    net = small_model()
    prompt = torch.randint(0, VOCAB, (3, 4))
    drawn = base_decoding(net, prompt, 20)
    assert drawn.shape == (3, 16)
    assert base_decoding(net, prompt, 4).shape == (3, 0)
    greedy = base_decoding(net, prompt, 20, **GREEDY)
    # Token by token is what the whole sequence gives.
    whole = torch.cat([prompt, greedy], 1)
    assert torch.equal(net(whole)[:, 3:-1].argmax(-1), greedy)


@pytest.mark.parametrize("gamma", [1, 3, 6])
@pytest.mark.parametrize("rows", [1, 4])
def test_r20_greedy_text_is_that_of_the_base(gamma: int, rows: int) -> None:
    """Over many rounds with and without accepted guesses, rows at different places."""
    net = wrapped()
    prompt = torch.randint(0, VOCAB, (rows, 4), generator=torch.Generator().manual_seed(rows))
    base = base_decoding(net.model, prompt, 40, **GREEDY)
    found, mean = speculative_decoding_with_prophet_model(net, prompt, 40, gamma, **GREEDY)
    assert torch.equal(found, base)
    assert 0 <= mean <= gamma
    found, mean = speculative_decoding(net.model, small_model(3), prompt, 40, gamma, **GREEDY)
    assert torch.equal(found, base)
    assert 0 <= mean <= gamma
    # The model itself guesses everything right.
    found, mean = speculative_decoding(
        net.model, net.model, prompt, 4 + 2 * (gamma + 1), gamma, **GREEDY
    )
    assert mean == pytest.approx(gamma)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_r21_short_prompts(length: int) -> None:
    net = wrapped(leading=3)
    prompt = torch.randint(0, VOCAB, (2, length))
    base = base_decoding(net.model, prompt, 15, **GREEDY)
    assert torch.equal(
        speculative_decoding_with_prophet_model(net, prompt, 15, 4, **GREEDY)[0], base
    )


def exact(net: RWKV4, prompt: torch.Tensor, length: int, **options: float) -> dict[tuple, float]:
    """Probabilities of all continuations."""
    found = {}
    for ids in itertools.product(range(VOCAB), repeat=length):
        row = torch.cat([prompt, torch.tensor([ids])], 1)
        with torch.no_grad():
            p = compat._probabilities(net(row)[0], options["temperature"], options["filter_thres"])
        start, value = prompt.shape[1] - 1, 1.0
        for i, token in enumerate(ids):
            value *= float(p[start + i, token])
        found[ids] = value
    return found


def chi_square(counts: Counter, expected: dict[tuple, float], draws: int) -> float:
    """Chi-square over its degrees of freedom, rare continuations put together."""
    cells, rest, seen = [], 0.0, 0
    for ids, p in expected.items():
        if p * draws >= 8:
            cells.append((counts[ids], p * draws))
        else:
            rest, seen = rest + p * draws, seen + counts[ids]
    if rest > 1:
        cells.append((seen, rest))
    assert rest > 0 or seen == 0
    return sum((n - e) ** 2 / e for n, e in cells) / (len(cells) - 1)


@pytest.mark.parametrize("kind", ["prophet", "small vocabulary", "model"])
@pytest.mark.parametrize("thres", [0.0, 0.5])
def test_r19_the_distribution_is_the_models(kind: str, thres: float) -> None:
    """Chi-square against all continuations of three tokens, over several rounds of two guesses."""
    net = wrapped(draft_vocab=3 if kind == "small vocabulary" else VOCAB)
    draws, options = 6000, {"temperature": 0.8, "filter_thres": thres}
    prompt = torch.tensor([[1, 3, 0]])
    many = prompt.expand(draws, -1)
    if kind == "model":
        found, mean = speculative_decoding(net.model, small_model(7), many, 6, 2, **options)
    else:
        found, mean = speculative_decoding_with_prophet_model(net, many, 6, 2, **options)
    assert 0.05 < mean < 2
    expected = exact(net.model, prompt, 3, **options)
    counts = Counter(map(tuple, found.tolist()))
    assert chi_square(counts, expected, draws) < 1.6
    # A wrong rule is seen: whatever is guessed is taken.
    generous = {**options, "lenience": 1e-9}
    if kind == "model":
        found, mean = speculative_decoding(net.model, small_model(7), many, 6, 2, **generous)
    else:
        found, mean = speculative_decoding_with_prophet_model(net, many, 6, 2, **generous)
    wrong = Counter(map(tuple, found.tolist()))
    total = sum(abs(wrong[ids] / draws - p) for ids, p in expected.items())
    assert total > 1.5 * sum(abs(counts[ids] / draws - p) for ids, p in expected.items())


def test_r18_every_argument_counts() -> None:
    net = wrapped()
    prompt = torch.randint(0, VOCAB, (30, 5))

    def mean(**options: float) -> float:
        torch.manual_seed(2)
        options = {"filter_thres": 0.0, **options}
        return speculative_decoding_with_prophet_model(net, prompt, 30, **options)[1]

    assert mean(gamma=1) <= 1 < mean(gamma=6, lenience=0.1)
    assert mean(gamma=4, lenience=0.5) > mean(gamma=4)
    found, _ = speculative_decoding_with_prophet_model(net, prompt, 30, 3, pad_id=-1)
    assert int(found.min()) >= 0  # every place of every row was written
    assert speculative_decoding_with_prophet_model(net, prompt, 5)[0].shape == (30, 0)
    torch.manual_seed(3)
    narrow = base_decoding(net.model, prompt, 60, filter_thres=0.99)
    assert torch.equal(narrow, base_decoding(net.model, prompt, 60, **GREEDY))
    cold = speculative_decoding_with_prophet_model(net, prompt, 30, temperature=1e-4)[0]
    assert torch.equal(cold, base_decoding(net.model, prompt, 30, **GREEDY))


def test_top_k_keeps_a_share() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, 0.5, 0.1, 0.2, 0.3, 0.4]])
    assert compat.top_k(logits, 0.9).isfinite().sum() == 1
    assert compat.top_k(logits, 0.75).isfinite().sum() == 3
    assert compat.gumbel_sample(logits, 0.0).tolist() == [1]
