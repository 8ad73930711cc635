"""Interpolated modified Kneser-Ney (Chen and Goodman 1999): the n-gram baseline of a model.

Counts live in sorted arrays of packed n-grams: order times bits per symbol must fit 63 bits, which
5 symbols of a vocabulary of 4096 (60 bits) or 7 bytes (56 bits) do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Level:
    """One order's n-grams: counts per n-gram, and per context what interpolation needs."""

    grams: np.ndarray
    """Sorted packed n-grams."""
    discounted: np.ndarray
    """Count minus discount, per n-gram."""
    contexts: np.ndarray
    """Sorted packed contexts (n-grams without their last symbol)."""
    totals: np.ndarray
    """Sum of counts, per context."""
    reserved: np.ndarray
    """Probability mass taken by the discounts, per context, as a count."""


def _pack(stream: np.ndarray, order: int, bits: int) -> np.ndarray:
    """Return all ``order``-grams of the stream as integers, first symbol highest."""
    keys = np.zeros(len(stream) - order + 1, np.int64)
    for i in range(order):
        keys = (keys << bits) | stream[i : len(stream) - order + 1 + i].astype(np.int64)
    return keys


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discount for counts of 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (max(1, int(np.count_nonzero(counts == c))) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return np.array([0.0, *(min(max(d, 0.1), c) for c, d in enumerate(found, start=1))])


def _level(grams: np.ndarray, counts: np.ndarray, bits: int) -> _Level:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> bits, return_index=True)
    return _Level(
        grams,
        counts - discount,
        contexts,
        np.add.reduceat(counts, first),
        np.add.reduceat(discount, first),
    )


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each key, and whether it is there at all."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


class KneserNey:
    """An n-gram model of a stream of symbols."""

    def __init__(self, stream: np.ndarray, vocab_size: int, order: int = 5) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.bits = max(1, int(vocab_size - 1).bit_length())
        if order * self.bits > 63:
            raise ValueError(f"order {order} with {vocab_size} symbols does not fit 63 bits")
        grams, counts = np.unique(_pack(stream, order, self.bits), return_counts=True)
        self.levels = [_level(grams, counts, self.bits)]
        for n in range(order - 1, 0, -1):
            # Lower orders count in how many different contexts an n-gram occurs.
            suffixes = grams & ((1 << (n * self.bits)) - 1)
            grams, counts = np.unique(suffixes, return_counts=True)
            self.levels.insert(0, _level(grams, counts, self.bits))

    def probabilities(self, stream: np.ndarray, start: int = 0) -> np.ndarray:
        """Return the probability of each symbol given those before it.

        Before the first symbol stands ``order - 1`` times the symbol ``start``.
        """
        padded = np.concatenate((np.full(self.order - 1, start, stream.dtype), stream))
        keys = _pack(padded, self.order, self.bits)
        found = np.full(len(stream), 1.0 / self.vocab_size)
        for n, level in enumerate(self.levels, start=1):
            grams = keys & ((1 << (n * self.bits)) - 1)
            gram, seen = _find(level.grams, grams)
            context, known = _find(level.contexts, grams >> self.bits)
            own = np.where(seen, level.discounted[gram], 0.0)
            mixed = (own + level.reserved[context] * found) / level.totals[context]
            found = np.where(known, mixed, found)
        return found

    def bits_of(self, stream: np.ndarray, start: int = 0) -> float:
        """Return the information content of the stream in bits."""
        return float(-np.log2(self.probabilities(stream, start)).sum())
