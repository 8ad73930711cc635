"""Medians, intervals, theory."""

from __future__ import annotations

import numpy as np
import pytest

from spikelet.bench import Figure, theory
from spikelet.bench.figures import bootstrap_interval, rounded, there_and_back


def test_an_interval_holds_the_median_and_narrows() -> None:
    rng = np.random.default_rng(3)
    few, many = rng.normal(5, 1, 7).tolist(), rng.normal(5, 1, 200).tolist()
    for values in (few, many):
        low, high = bootstrap_interval(values)
        assert low <= np.median(values) <= high
        assert bootstrap_interval(values) == (low, high)
    width = [high - low for low, high in map(bootstrap_interval, (few, many))]
    assert width[1] < width[0] / 2
    assert bootstrap_interval([2.0]) == (2.0, 2.0)


def test_intervals_hold_the_true_median_nearly_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    held = [
        low <= 0 <= high
        for low, high in (bootstrap_interval(rng.normal(0, 1, 15).tolist()) for _ in range(200))
    ]
    assert 0.86 < np.mean(held) <= 1


def test_ratios_are_those_of_turns() -> None:
    # The machine halves its speed in the second turn; the ratio does not see it.
    figure = Figure.ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0])
    assert (figure.median, figure.low, figure.high) == (2.0, 2.0, 2.0)


def test_order() -> None:
    assert there_and_back("ab", 0) + there_and_back("ab", 1) == list("abba")


def test_rounding() -> None:
    assert rounded({"a": [1.23456, (2, 0.000123456)], "b": "x"}) == {
        "a": [1.235, [2, 0.0001235]],
        "b": "x",
    }


def test_expected_lengths() -> None:
    assert theory.expected_length(0.0, 4) == 1
    assert theory.expected_length(1.0, 4) == 5
    assert theory.expected_length(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)
    for a in (0.1, 0.6, 0.95):
        length = theory.expected_length(a, 3.5)
        assert theory.implied_acceptance(length, 3.5) == pytest.approx(a, abs=1e-6)


def test_speedups_from_costs() -> None:
    costs = {"pass": {1: 1.0, 2: 1.1, 4: 1.5}, "draft": {"prophet": 0.1}}
    assert theory.pass_seconds(costs, 1) == 1.0
    assert theory.pass_seconds(costs, 3) == pytest.approx(1.3)
    assert theory.pass_seconds(costs, 6) == pytest.approx(1.9)
    assert theory.pass_seconds({"pass": {1: 2.0}}, 5) == 2.0
    # A draft of one token that is always right: two tokens for 1.1 + 0.1.
    assert theory.speedup(costs, 1.0, 1) == pytest.approx(2 / 1.2)
    assert theory.speedup(costs, 0.0, 1) == pytest.approx(1 / 1.2)
    assert theory.speedups(costs, [0.0, 1.0], [1]) == [
        [pytest.approx(1 / 1.2), pytest.approx(2 / 1.2)]
    ]
