"""Numbers with what chance may have done to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""A normal variable is within this many standard deviations with a probability of 95 %."""


@dataclass(frozen=True)
class Metric:
    """A value, its standard error, and its 95 % interval. One item alone has neither."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    count: int
    """Items that it is from."""


def accuracy(correct: Sequence[bool]) -> Metric:
    """The share that is true; the interval is Wilson's, which stays within 0 and 1.

    The standard error is that of a sample's mean, with n - 1, as lm-evaluation-harness gives it.
    """
    count = len(correct)
    share = sum(correct) / count
    if count < 2:
        return Metric(share, None, None, None, count)
    stderr = math.sqrt(share * (1 - share) / (count - 1))
    square = Z95 * Z95
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count * count)
    half = Z95 / (1 + square / count) * math.sqrt(spread)
    return Metric(share, stderr, max(middle - half, 0.0), min(middle + half, 1.0), count)


def mean_accuracy(parts: Sequence[Metric]) -> Metric:
    """The mean of accuracies, each counting the same whatever its size.

    Its chance lies in the items of each part: the parts themselves were not drawn.
    """
    value = sum(part.value for part in parts) / len(parts)
    count = sum(part.count for part in parts)
    errors = [part.stderr for part in parts if part.stderr is not None]
    if len(errors) < len(parts):
        return Metric(value, None, None, None, count)
    stderr = math.sqrt(sum(error * error for error in errors)) / len(parts)
    low, high = value - Z95 * stderr, value + Z95 * stderr
    return Metric(value, stderr, max(low, 0.0), min(high, 1.0), count)


def perplexity(log_probs: Sequence[float]) -> Metric:
    """The exponential of the mean negative log probability of an item.

    The standard error is the mean's times the value: that of the exponential's tangent.
    """
    values = np.array(log_probs, np.float64)
    count = len(values)
    mean = float(-values.mean())
    value = _exp(mean)
    if count < 2:
        return Metric(value, None, None, None, count)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    return Metric(value, value * error, _exp(mean - Z95 * error), _exp(mean + Z95 * error), count)


def _exp(value: float) -> float:
    """An overflow becomes the largest number that JSON readers take for one."""
    return math.exp(min(value, 700.0))
