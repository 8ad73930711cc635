"""Standard errors and intervals against published values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spikelet.evaluation.statistics import accuracy, mean_accuracy, perplexity


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    """8 of 10: 0.4902 to 0.9433; 0 of 10: 0 to 0.2775 (Wilson's score interval)."""
    found = accuracy([True] * 8 + [False] * 2)
    assert (found.value, found.count) == (0.8, 10)
    assert (found.low, found.high) == (
        pytest.approx(0.49016, abs=1e-5),
        pytest.approx(0.94332, abs=1e-5),
    )
    assert found.stderr == pytest.approx(np.std([1] * 8 + [0] * 2, ddof=1) / math.sqrt(10))
    none = accuracy([False] * 10)
    assert (none.stderr, none.low, none.high) == (0.0, 0.0, pytest.approx(0.27754, abs=1e-5))


def test_a_mean_of_accuracies_has_the_error_of_its_parts() -> None:
    """Against drawing the parts' items anew, many times."""
    rng = np.random.default_rng(1)
    parts = [rng.random(200) < share for share in (0.2, 0.5, 0.9)]
    found = mean_accuracy([accuracy(part.tolist()) for part in parts])
    assert found.value == pytest.approx(np.mean([part.mean() for part in parts]))
    drawn = np.mean([rng.choice(part, (20000, 200)).mean(axis=1) for part in parts], axis=0)
    assert found.stderr == pytest.approx(drawn.std(), rel=0.03)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.003)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.003)


def test_the_error_of_a_perplexity() -> None:
    rng = np.random.default_rng(2)
    log_probs = -rng.gamma(4.0, 1.0, 400)
    found = perplexity(log_probs.tolist())
    assert found.value == pytest.approx(np.exp(-log_probs.mean()))
    drawn = np.exp(-rng.choice(log_probs, (20000, 400)).mean(axis=1))
    assert found.stderr == pytest.approx(drawn.std(), rel=0.05)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), rel=0.02)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), rel=0.02)


def test_one_item_has_no_error() -> None:
    for found in (accuracy([True]), perplexity([-2.0]), mean_accuracy([accuracy([True])])):
        assert (found.stderr, found.low, found.high, found.count) == (None, None, None, 1)
    assert perplexity([-2000.0, -1999.0]).value < math.inf
