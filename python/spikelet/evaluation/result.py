"""What a task found out about a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from spikelet.evaluation.statistics import Metric

Report = Callable[[str, int, int], object]
"""Is called with a task's name, the requests done, and the requests in all."""


@dataclass
class TaskResult:
    """Metrics of one task, and of the groups that its items fall in."""

    task: str
    source: str
    """The file that the items came from."""
    num_items: int
    metrics: dict[str, Metric]
    chance: dict[str, float]
    """What guessing gives, where that means something."""
    groups: dict[str, dict[str, Metric]] = field(default_factory=dict)
    """Accuracy by kind of group and by group, in the order of the file."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)
