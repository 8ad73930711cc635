"""BLiMP: sentence pairs that differ in one point of grammar (Warstadt et al. 2020).

As `blimp` of lm-evaluation-harness: a sentence comes after the token that begins a text, and a
space. The pair is right if the good sentence is likelier (or as likely). Accuracy of a paradigm is
over its pairs; that of a linguistic term, of a field and of all is the mean of its paradigms'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spikelet.evaluation.files import Item
from spikelet.evaluation.result import TaskResult
from spikelet.evaluation.scoring import Progress, encode_pair, score_pairs
from spikelet.evaluation.statistics import Metric, accuracy, mean_accuracy

if TYPE_CHECKING:
    from spikelet import Model

# The field of each term in the paper's table of paradigms, for files that do not name it.
FIELDS = {
    "anaphor_agreement": "morphology",
    "argument_structure": "syntax",
    "binding": "syntax_semantics",
    "control_raising": "syntax_semantics",
    "determiner_noun_agreement": "morphology",
    "ellipsis": "syntax",
    "filler_gap_dependency": "syntax",
    "irregular_forms": "morphology",
    "island_effects": "syntax",
    "npi_licensing": "semantics",
    "quantifiers": "semantics",
    "s-selection": "syntax",
    "subject_verb_agreement": "morphology",
}


def group_of(item: Item) -> str:
    """The paradigm: a limit counts for each."""
    _read(item)
    return item.text("UID")


def _read(item: Item) -> tuple[str, str]:
    return item.text("sentence_good"), item.text("sentence_bad")


def run(model: Model, source: str, items: Sequence[Item], progress: Progress | None) -> TaskResult:
    """Scores all items."""
    pairs = [encode_pair(model, "", f" {text}") for item in items for text in _read(item)]
    scored = score_pairs(model, pairs, progress=progress)
    right: dict[str, list[bool]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for at, item in enumerate(items):
        good, bad = scored[2 * at : 2 * at + 2]
        paradigm = item.text("UID")
        right.setdefault(paradigm, []).append(good.log_prob >= bad.log_prob)
        term = item.text("linguistics_term", "unknown")
        kinds[paradigm] = term, item.text("field", FIELDS.get(term, "unknown"))
    paradigms = {name: accuracy(found) for name, found in right.items()}
    groups = {
        "field": _means(paradigms, {name: field for name, (_, field) in kinds.items()}),
        "term": _means(paradigms, {name: term for name, (term, _) in kinds.items()}),
        "paradigm": paradigms,
    }
    metrics = {"acc": mean_accuracy(list(paradigms.values()))}
    return TaskResult("blimp", source, len(items), metrics, {"acc": 0.5}, groups)


def _means(paradigms: dict[str, Metric], group_by: dict[str, str]) -> dict[str, Metric]:
    members: dict[str, list[Metric]] = {}
    for name, group in group_by.items():
        members.setdefault(group, []).append(paradigms[name])
    return {group: mean_accuracy(parts) for group, parts in members.items()}
