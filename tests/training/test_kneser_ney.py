"""The n-gram baseline against a direct reading of Chen and Goodman's formula."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from kneser_ney import KneserNey

VOCAB = 6
STREAM = np.random.default_rng(0).integers(0, VOCAB, 400) ** 2 % VOCAB


def naive_probability(words: list[int], context: list[int], word: int, order: int) -> float:
    """Interpolated modified Kneser-Ney, with dictionaries."""

    def counts(n: int) -> Counter[tuple[int, ...]]:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n == order:
            return Counter(grams)
        return Counter(gram[1:] for gram in counts(n + 1))

    def probability(history: tuple[int, ...]) -> float:
        n = len(history) + 1
        lower = probability(history[1:]) if history else 1 / VOCAB
        table = counts(n)
        totals = Counter(table.values())
        n1, n2, n3, n4 = (max(1, totals[c]) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        discount = [0.0, *(min(max(d, 0.1), c) for c, d in enumerate(raw, start=1))]
        followers = {gram[-1]: c for gram, c in table.items() if gram[:-1] == history}
        if not followers:
            return lower
        total = sum(followers.values())
        own = max(0.0, followers.get(word, 0) - discount[min(followers.get(word, 0), 3)])
        reserved = sum(discount[min(c, 3)] for c in followers.values())
        return own / total + reserved / total * lower

    return probability(tuple(context))


def test_probabilities_are_those_of_the_formula() -> None:
    model = KneserNey(STREAM, VOCAB, order=3)
    text = np.array([1, 0, 4, 3, 3, 5, 2, 1])
    found = model.probabilities(text)
    padded = [0, 0, *text.tolist()]
    for i, word in enumerate(text.tolist()):
        expected = naive_probability(STREAM.tolist(), padded[i : i + 2], word, 3)
        assert found[i] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_one_after_known_and_unknown_contexts(order: int) -> None:
    model = KneserNey(STREAM[:60], VOCAB, order)
    for context in ([0, 1, 3, 4], [5, 5, 5, 5], [2, 2, 5, 2]):
        total = sum(model.probabilities(np.array([*context, w]))[-1] for w in range(VOCAB))
        assert total == pytest.approx(1, rel=1e-12)


def test_higher_orders_help_on_text_that_repeats() -> None:
    text = np.tile([0, 1, 2, 0, 3, 2, 1, 4], 50)
    bits = [KneserNey(text[:200], VOCAB, order).bits_of(text[200:]) for order in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]


def test_orders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="order 6 with 4096 symbols"):
        KneserNey(STREAM, 4096, 6)
