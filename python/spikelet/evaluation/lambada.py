"""LAMBADA: the last word of a passage that needs the whole passage (Paperno et al. 2016).

As `lambada_openai` of lm-evaluation-harness: the target is the last space and all after it. `acc`:
is every token of the target the likeliest one after those before it? `perplexity`: of the target as
a whole, however many tokens it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spikelet.evaluation.files import Item
from spikelet.evaluation.result import TaskResult
from spikelet.evaluation.scoring import Progress, encode_pair, score_pairs
from spikelet.evaluation.statistics import accuracy, perplexity

if TYPE_CHECKING:
    from spikelet import Model


def group_of(item: Item) -> str:
    """All items are of one kind."""
    item.text("text")
    return ""


def split(text: str) -> tuple[str, str]:
    """A passage as context and target."""
    *before, word = text.split(" ")
    return " ".join(before), " " + word


def run(model: Model, source: str, items: Sequence[Item], progress: Progress | None) -> TaskResult:
    """Scores all items."""
    pairs = [encode_pair(model, *split(item.text("text"))) for item in items]
    scored = score_pairs(model, pairs, greedy=True, progress=progress)
    metrics = {
        "acc": accuracy([bool(one.greedy) for one in scored]),
        "perplexity": perplexity([one.log_prob for one in scored]),
    }
    # A guess among tens of thousands of words is never right.
    return TaskResult("lambada", source, len(items), metrics, {"acc": 0.0})
