r"""PIQA: which of two solutions reaches a goal (Bisk et al. 2020).

As `piqa` of lm-evaluation-harness: the context is "Question: GOAL\nAnswer:", a solution comes after
a space. `acc` takes the likelier solution, `acc_norm` the one with more log probability per
character of the solution. The first wins a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spikelet.evaluation.files import Item
from spikelet.evaluation.result import TaskResult
from spikelet.evaluation.scoring import Progress, encode_pair, score_pairs
from spikelet.evaluation.statistics import accuracy

if TYPE_CHECKING:
    from spikelet import Model


def group_of(item: Item) -> str:
    """All items are of one kind."""
    _read(item)
    return ""


def _read(item: Item) -> tuple[str, tuple[str, str], int]:
    return item.text("goal"), (item.text("sol1"), item.text("sol2")), item.choice("label", 2)


def run(model: Model, source: str, items: Sequence[Item], progress: Progress | None) -> TaskResult:
    """Scores all items."""
    pairs = []
    for item in items:
        goal, solutions, _ = _read(item)
        context = f"Question: {goal}\nAnswer:"
        pairs += [encode_pair(model, context, f" {solution}") for solution in solutions]
    scored = score_pairs(model, pairs, progress=progress)
    right, right_norm = [], []
    for at, item in enumerate(items):
        _, solutions, label = _read(item)
        sums = np.array([one.log_prob for one in scored[2 * at : 2 * at + 2]])
        right.append(int(sums.argmax()) == label)
        right_norm.append(int((sums / [len(text) for text in solutions]).argmax()) == label)
    metrics = {"acc": accuracy(right), "acc_norm": accuracy(right_norm)}
    return TaskResult("piqa", source, len(items), metrics, {"acc": 0.5, "acc_norm": 0.5})
