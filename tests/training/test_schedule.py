"""The learning rate at points where one can tell what it must be."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from spikelet.training import TrainerConfig
from spikelet.training.trainer.schedule import learning_rate


def rates(points: list[int], length: int, **options: Any) -> list[float]:
    config = TrainerConfig(**{"learning_rate": 1.0, "lr_final": 0.1, **options})
    return [learning_rate(config, tokens, length) for tokens in points]


def test_t27_cosine_at_five_points() -> None:
    found = rates([0, 50, 100, 600, 1100], 1100, warmup_tokens=100)
    assert found == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1])


def test_t27_trapezoid_at_five_points() -> None:
    found = rates(
        [50, 100, 600, 800, 1000], 1000, warmup_tokens=100, schedule="trapezoid", decay_share=0.4
    )
    assert found == pytest.approx([0.55, 1, 1, 0.55, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
@pytest.mark.parametrize("final_tokens", [0, 20])
def test_t27_the_rate_never_rises_again(schedule: str, final_tokens: int) -> None:
    """With ``final_tokens`` far too small, as when steps are taken for tokens, it stays low."""
    points = list(range(64, 3201, 32))
    found = rates(points, 3200, warmup_tokens=64, schedule=schedule, final_tokens=final_tokens)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(0.1)
    assert rates([4000], 3200, schedule=schedule) == pytest.approx([0.1])


def test_t27_without_decay_the_rate_is_constant() -> None:
    assert rates([0, 10, 1000], 1000, warmup_tokens=100, lr_decay=False) == [1, 1, 1]
