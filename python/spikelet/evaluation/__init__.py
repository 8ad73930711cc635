"""How good a model is: texts, and the tasks LAMBADA, BLiMP and PIQA, through the engine.

Example:
    >>> import spikelet
    >>> from spikelet.evaluation import score_text
    >>> score = score_text(spikelet.load(), "Once upon a time there was a little girl.")
    >>> 0 < score.bits_per_byte < 3
    True

The definitions are those of lm-evaluation-harness; docs/evaluation.md spells them out. The files
are yours to bring, nothing is downloaded. `spikelet.evaluation.lm_eval` runs the harness itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spikelet.errors import OptionError
from spikelet.evaluation import blimp, lambada, piqa
from spikelet.evaluation.files import pick, read_items
from spikelet.evaluation.result import Report, TaskResult
from spikelet.evaluation.scoring import Progress, Scored, encode_pair, score_pairs
from spikelet.evaluation.statistics import Metric
from spikelet.evaluation.text import TextScore, score_text

if TYPE_CHECKING:
    from spikelet import Model
    from spikelet.evaluation.files import Item

__all__ = [
    "TASKS",
    "Metric",
    "Scored",
    "TaskResult",
    "TextScore",
    "encode_pair",
    "evaluate",
    "score_pairs",
    "score_text",
]

TASKS = {"lambada": lambada, "blimp": blimp, "piqa": piqa}
"""The tasks by name."""


def evaluate(
    model: Model,
    tasks: Mapping[str, str | Path],
    *,
    limit: int | None = None,
    seed: int | None = None,
    report: Report | None = None,
) -> dict[str, TaskResult]:
    """Runs tasks, one after the other.

    All files are read before the first token is.

    Args:
        model: the model, with a tokenizer.
        tasks: files by the name of the task; a BLiMP may be the folder of its files.
        limit: take only so many items of a task, of BLiMP so many of each paradigm: the first ones.
        seed: with `limit`: draw them instead. The same seed draws the same.
        report: is called with the task's name, the requests done and the requests in all.

    Raises:
        OptionError: no such task, or a limit below 1.
        FormatError: an item that is no item of the task, with file and line.
        OSError: a file cannot be read.
        TokenizerError: the model takes ids only.
    """
    chosen: dict[str, list[Item]] = {}
    for name, path in tasks.items():
        if name not in TASKS:
            known = ", ".join(TASKS)
            raise OptionError(f"option `task`: no task '{name}', there are {known}")
        chosen[name] = _choose(name, path, limit, seed)
    results = {}
    for name, items in chosen.items():
        start = time.perf_counter()
        result = TASKS[name].run(model, str(tasks[name]), items, _progress(name, report))
        result.seconds = time.perf_counter() - start
        results[name] = result
    return results


def _choose(name: str, path: str | Path, limit: int | None, seed: int | None) -> list[Item]:
    groups: dict[str, list[Item]] = {}
    for item in read_items(path):
        groups.setdefault(TASKS[name].group_of(item), []).append(item)
    return [item for group in groups.values() for item in pick(group, limit, seed)]


def _progress(name: str, report: Report | None) -> Progress | None:
    if report is None:
        return None
    return lambda done, total: report(name, done, total)
