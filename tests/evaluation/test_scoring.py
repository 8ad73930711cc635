"""Sums of log probabilities: against plain arithmetic, and together against one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spikelet
from evaluation.naive import naive_score
from spikelet.evaluation import encode_pair, score_pairs

# Few ids, so that many requests begin alike, contain one another or are the same.
IDS = st.lists(st.integers(0, 2), max_size=6).map(tuple)
PAIRS = st.lists(st.tuples(st.sampled_from([(0,), (1,), (7, 7, 7, 8)]), IDS), max_size=12)


@pytest.mark.parametrize("name", ["spikegpt-tiny", "rwkv4-tiny"])
def test_scores_are_those_of_plain_arithmetic(golden: Path, name: str) -> None:
    model = spikelet.load(golden / name, threads=1)
    rng = np.random.default_rng(1)
    pairs = [
        (tuple(rng.integers(0, 200, before)), tuple(rng.integers(0, 200, after)))
        for before, after in [(1, 1), (1, 9), (20, 3), (3, 70), (2, 0)]
    ]
    for pair, found in zip(pairs, score_pairs(model, pairs, greedy=True), strict=True):
        log_prob, greedy = naive_score(model, *pair)
        assert found.log_prob == pytest.approx(log_prob, rel=1e-6)
        assert found.greedy is greedy
        assert found.num_tokens == len(pair[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pairs=PAIRS)
def test_together_is_one_by_one_to_the_bit(
    model: spikelet.Model, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    together = score_pairs(model, pairs, greedy=True)
    assert together == [score_pairs(model, [pair], greedy=True)[0] for pair in pairs]


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
def test_greedy_is_what_greedy_decoding_writes(model: spikelet.Model, length: int) -> None:
    made = model.generate([1, 2, 3], max_new_tokens=length, temperature=0, ignore_eos=True).run()
    written = tuple(made.ids)
    other = (*written[:-1], (written[-1] + 1) % 256)
    found = score_pairs(model, [((1, 2, 3), written), ((1, 2, 3), other)], greedy=True)
    assert [one.greedy for one in found] == [True, False]
    assert score_pairs(model, [((1, 2, 3), written)])[0].greedy is None


def test_items_longer_than_any_pass(model: spikelet.Model) -> None:
    rng = np.random.default_rng(2)
    context, continuation = tuple(rng.integers(0, 256, 1100)), tuple(rng.integers(0, 256, 1300))
    (found,) = score_pairs(model, [(context, continuation)])
    assert found.log_prob == pytest.approx(naive_score(model, context, continuation)[0], rel=1e-6)


class Counting:
    """A model that counts the tokens it reads."""

    def __init__(self, model: spikelet.Model) -> None:
        self._model = model
        self.tokens = 0

    def new_state(self) -> spikelet.State:
        return self._model.new_state()

    def forward(self, ids: Any, state: spikelet.State, all_logits: bool = True) -> Any:
        self.tokens += len(ids)
        return self._model.forward(ids, state, all_logits)

    def score(self, ids: Any, state: spikelet.State) -> Any:
        self.tokens += len(ids) - 1
        return self._model.score(ids, state)


def test_what_requests_share_is_computed_once(model: spikelet.Model) -> None:
    counting: Any = Counting(model)
    context = tuple(range(50))
    shared = tuple(range(100, 130))
    pairs = [(context, (*shared, 1, 2)), (context, (*shared, 3)), (context, (*shared, 1, 2))]
    score_pairs(counting, pairs)
    # Contexts but for their last token, then every token of the tree once.
    assert counting.tokens == 49 + 30 + 2 + 1


def test_progress_counts_to_the_end(model: spikelet.Model) -> None:
    seen: list[tuple[int, int]] = []
    pairs = [((1,), (2,)), ((1,), (2,)), ((5,), (6, 7))]
    score_pairs(model, pairs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


def speaker(**ids: int | None) -> Any:
    """A model whose tokenizer knows letters and the pair "ab" across any border."""

    def encode(text: str) -> list[int]:
        return [200 if part == "#" else ord(part) for part in text.replace("ab", "#")]

    config = {"bos_token_id": None, "eos_token_id": None, **ids}
    return SimpleNamespace(
        tokenizer=SimpleNamespace(encode=encode), config=SimpleNamespace(**config)
    )


def codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_an_empty_context_is_the_token_that_begins_a_text() -> None:
    assert encode_pair(speaker(eos_token_id=9), "", "xy") == ((9,), codes("xy"))
    assert encode_pair(speaker(bos_token_id=8, eos_token_id=9), "", "xy") == ((8,), codes("xy"))
    # One that is written out there already is not doubled.
    assert encode_pair(speaker(eos_token_id=ord("x")), "", "xy") == (codes("x"), codes("y"))


def test_without_such_a_token_the_first_one_is_read_and_not_scored() -> None:
    assert encode_pair(speaker(), "", "xyz") == (codes("x"), codes("yz"))
    assert encode_pair(speaker(), "", "x") == (codes("x"), ())
    assert encode_pair(speaker(), "", "") == ((), ())


def test_white_space_before_the_border_belongs_to_the_continuation() -> None:
    for context in ("x y ", "x y\n", "x y  \t"):
        space = context[3:]
        assert encode_pair(speaker(), context, "z") == (codes("x y"), codes(f"{space}z"))
    assert encode_pair(speaker(eos_token_id=9), "  ", "z") == ((9,), codes("  z"))


def test_a_target_that_is_tokenised_differently_when_joined() -> None:
    # "xa" + "bc" is "x", "ab", "c". The context alone has two tokens: what is left of three is "c".
    assert encode_pair(speaker(), "xa", "bc") == (codes("xa"), codes("c"))
    # All of the continuation may be swallowed: nothing is left to be wrong about.
    assert encode_pair(speaker(), "xa", "b") == (codes("xa"), ())


def test_nothing_to_score_has_probability_one(model: spikelet.Model) -> None:
    for pair in [((1, 2), ()), ((), ())]:
        (found,) = score_pairs(model, [pair], greedy=True)
        assert (found.log_prob, found.num_tokens, found.greedy) == (0.0, 0, True)
    assert score_pairs(model, []) == []


def test_characters_of_several_bytes(writer: spikelet.Model) -> None:
    context, target = "Der Füchslein — 狐", "狸 🦊"
    pair = encode_pair(writer, context, target)
    assert pair == (tuple(context.encode()), tuple(target.encode()))
    (found,) = score_pairs(writer, [pair])
    assert found.log_prob == pytest.approx(naive_score(writer, *pair)[0], rel=1e-6)
