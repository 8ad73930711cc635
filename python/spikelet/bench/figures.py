"""Numbers that were measured several times, and the order of measuring.

Machines drift, by half within minutes where memory is shared with strangers. So what is compared is
measured in turns, in an order that alternates, and a ratio is that of the same turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

RESAMPLES = 2000
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """The median of several values, and an interval for it."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of values of the same thing; the interval is `bootstrap_interval`."""
        return cls(statistics.median(values), *bootstrap_interval(values), len(values))

    @classmethod
    def ratio(cls, above: Sequence[float], below: Sequence[float]) -> Figure:
        """How much `above` is of `below`, turn by turn."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def bootstrap_interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Between what the median of such values stays in so many of 100 cases.

    The values are drawn from themselves again and again, always with the same random numbers. It
    assumes nothing about how they are distributed; few values make it too narrow.
    """
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.median(np.asarray(values, np.float64)[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def there_and_back(items: Sequence[T], turn: int) -> list[T]:
    """The order of a turn: forth and then back, so that a steady drift hits all alike."""
    return list(items if turn % 2 == 0 else reversed(items))


def rounded(value: Any) -> Any:
    """The same, with four significant digits: no more were measured."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
