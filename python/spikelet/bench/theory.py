"""The arithmetic of speculation: what acceptance and costs should give.

A draft of n tokens, each accepted with probability a if those before it are, yields
`1 + a + .. + a^n` tokens a round, the model's own included. The round costs a pass over n + 1
tokens and the draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def expected_length(acceptance: float, drafted: float) -> float:
    """Tokens of a round; `drafted` may be a mean."""
    if acceptance >= 1:
        return 1 + drafted
    return float((1 - acceptance ** (drafted + 1)) / (1 - acceptance))


def implied_acceptance(length: float, drafted: float) -> float:
    """The probability that gives such a mean length: `expected_length` backwards."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_length(middle, drafted) < length else (low, middle)
    return (low + high) / 2


def pass_seconds(costs: Mapping[str, Any], tokens: float) -> float:
    """Of a pass over so many tokens, from those that were measured: linear between, and beyond."""
    points = sorted(costs["pass"].items())
    if len(points) == 1:
        return float(points[0][1])
    after = next((i for i, (t, _) in enumerate(points) if t >= tokens), len(points) - 1)
    (t0, s0), (t1, s1) = points[max(after - 1, 0)], points[max(after, 1)]
    return float(s0 + (s1 - s0) * (tokens - t0) / (t1 - t0))


def speedup(costs: Mapping[str, Any], acceptance: float, drafted: float) -> float:
    """Over base decoding, from measured costs, with drafts of the prophet if there is one."""
    draft = float(costs["draft"].get("prophet", 0.0))
    round_ = pass_seconds(costs, drafted + 1) + drafted * draft
    return expected_length(acceptance, drafted) * pass_seconds(costs, 1) / round_


def speedups(
    costs: Mapping[str, Any], acceptances: Sequence[float], lengths: Sequence[int]
) -> list[list[float]]:
    """A line for each length."""
    return [[speedup(costs, a, n) for a in acceptances] for n in lengths]
