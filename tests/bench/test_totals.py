"""Statistics of many generations as those of one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import spikelet
from bench.fake import stats
from spikelet.bench.totals import Totals, per_position


def generation(drafts: list[tuple[int, int]]) -> spikelet.GenerationStats:
    """What the engine tells of drafts of (drafted, accepted) tokens."""
    most = max(drafted for drafted, _ in drafts)
    drafted_at = [sum(d > i for d, _ in drafts) for i in range(most)]
    accepted_at = [sum(a > i for _, a in drafts) for i in range(most)]
    own: dict[str, Any] = {
        "num_drafts": len(drafts),
        "num_draft_tokens": sum(d for d, _ in drafts),
        "num_accepted_tokens": sum(a for _, a in drafts),
        "acceptance_rate_per_position": [
            a / d for a, d in zip(accepted_at, drafted_at, strict=True)
        ],
        "accepted_histogram": [sum(a == n for _, a in drafts) for n in range(17)],
        "num_rounds": len(drafts),
        "chose_base": 0.0,
    }
    return cast(spikelet.GenerationStats, SimpleNamespace(**{**vars(stats()), **own}))


def test_positions_are_found_again() -> None:
    accepted, drafted = per_position(generation([(4, 2), (3, 3), (1, 0), (4, 1)]))
    assert accepted == [3, 2, 1, 0]
    assert drafted == pytest.approx([4, 3, 3, 2])


def test_rates_are_of_sums() -> None:
    first, second = [(4, 4), (4, 2)], [(2, 0), (1, 1), (2, 1)]
    totals = Totals()
    totals.add(generation(first))
    totals.add(generation(second))
    both = generation(first + second)
    assert totals.acceptance_rate_per_position == pytest.approx(both.acceptance_rate_per_position)
    assert totals.histogram == both.accepted_histogram
    assert totals.acceptance_rate == pytest.approx(8 / 13)
    assert totals.mean_draft_length == pytest.approx(13 / 5)
    assert totals.mean_acceptance_length == pytest.approx(1 + 8 / 5)
    assert totals.by_source["ngram"] == {"num_draft_tokens": 24, "num_accepted_tokens": 12}


def test_nothing_drafted() -> None:
    totals = Totals()
    assert totals.acceptance_rate is totals.mean_draft_length is totals.predicted_speedup is None
    assert totals.acceptance_rate_per_position == []
    assert totals.chose_base is None
