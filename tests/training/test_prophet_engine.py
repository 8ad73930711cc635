"""The engine accepts what torch says it should: the same prophet on both sides (R23)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet.training import (  # noqa: E402
    Prophet,
    ProphetConfig,
    export_model,
    export_prophet,
    load_prophet,
    load_target,
)
from spikelet.training.prophet.acceptance import (  # noqa: E402
    Chain,
    coupled_acceptance,
    token_acceptance,
)
from spikelet.training.prophet.drafts import guesses, teach  # noqa: E402
from spikelet.training.prophet.export import fingerprint  # noqa: E402
from training.test_prophet import tiny_target  # noqa: E402

SHAPES: list[dict[str, Any]] = [
    {},
    {"tied_head": True, "n_layer": 2},
    {"n_embd": 24},
    {"block": "spikegpt"},
    {"num_leading": 1, "draft_vocab": 300},
    {"num_leading": 4},
]


def pair(folder: Path, shape: dict[str, Any]) -> Path:
    """A model and a prophet that is right now and then."""
    target = tiny_target(spiking=False)
    export_model(target, folder)
    torch.manual_seed(2)
    prophet = Prophet(ProphetConfig(**{"n_embd": 12, "draft_vocab": 200} | shape), target.config)
    prophet.start_from(target)
    with torch.no_grad():
        for parameter in prophet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    export_prophet(prophet, folder)
    return folder


def expected(folder: Path, ids: list[int], chain: Chain, verify: str) -> list[float]:
    """How likely torch thinks that a guess of each token would be accepted; nan where none is."""
    target = load_target(folder)
    prophet = load_prophet(folder, target)
    text = torch.tensor([ids])
    with torch.no_grad():
        lesson, _ = teach(target, text[:, :-1], text[:, 1:])
        judged, logits = next(guesses(prophet, lesson, 1, target.head.weight))
        p = chain.apply(lesson.logits[0, judged])
        q = chain.apply(logits[0])
        drawn = prophet.draft_ids.long()
        if chain.temperature == 0:
            found = (drawn[q.argmax(-1)] == p.argmax(-1)).double()
        else:
            judge = coupled_acceptance if verify == "coupled" else token_acceptance
            found = judge(p[:, drawn], q)
    return [float("nan")] * (len(ids) - len(found)) + found.tolist()


def drafted_places(tokens: list[spikelet.Token], first: int) -> list[int]:
    """Places of the tokens that were guessed, one guess per round and none for the last token."""
    places, at = [], 1
    while at < len(tokens) - 1:
        places.append(at)
        # A guess that was right brings the token after it along.
        at += 2 if tokens[at].drafted else 1
    return [first + place for place in places]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("verify", ["coupled", "token"])
@pytest.mark.parametrize("chain", [Chain(1.0), Chain(0.7, 0.9), Chain(0.0)])
def test_r23_acceptance_is_that_of_torch(
    tmp_path: Path, shape: dict[str, Any], chain: Chain, verify: str
) -> None:
    folder = pair(tmp_path / "model", shape)
    model = spikelet.load(folder, threads=1)
    config = spikelet.SpeculativeConfig("prophet", num_speculative_tokens=1, verify=verify)
    prompt = list(range(7, 15))
    accepted = should = spread = 0.0
    drafts = 0
    for seed in range(4):
        done = model.generate(
            prompt, max_new_tokens=300, temperature=chain.temperature, top_p=chain.top_p,
            seed=seed, speculative=config,
        ).run()  # fmt: skip
        places = drafted_places(done.tokens, len(prompt))
        chances = expected(folder, [*prompt, *done.ids], chain, verify)
        assert done.stats.num_draft_tokens == len(places)
        drafts += len(places)
        accepted += done.stats.num_accepted_tokens
        should += sum(chances[place] for place in places)
        spread += sum(chances[place] * (1 - chances[place]) for place in places)
    assert drafts > 500
    if chain.temperature == 0:
        assert accepted == pytest.approx(should, abs=2)  # a tie in the last bit
    else:
        assert should > 20
        assert abs(accepted - should) < 4 * spread**0.5 + 1e-6


def test_both_sides_have_one_fingerprint(tmp_path: Path) -> None:
    folder = pair(tmp_path / "model", {})
    found = spikelet.load(folder, threads=1).fingerprint
    assert found == fingerprint(folder / "model.safetensors")
    config = json.loads((folder / "prophet" / "config.json").read_text())
    assert config["model_fingerprint"] == found


def test_the_bundled_prophet_is_the_bundled_models() -> None:
    if "bundled" not in spikelet.local_models():
        pytest.skip("this checkout has no bundled model")
    folder = spikelet.find_model()
    prophet = load_prophet(folder, load_target(folder))
    assert prophet.model_fingerprint == spikelet.load().fingerprint
