"""Statistics of many generations as those of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikelet import GenerationStats


@dataclass
class Totals:
    """Sums of what `GenerationStats` counts. Rates are of the sums, so long texts weigh more."""

    num_rounds: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_at: list[float] = field(default_factory=list)
    """Drafts whose first, second .. token stayed."""
    drafted_at: list[float] = field(default_factory=list)
    """Drafts that had a first, second .. token."""
    histogram: list[int] = field(default_factory=list)
    """How many drafts had 0, 1, 2 .. tokens accepted."""
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    time_draft: float = 0.0
    time_verify: float = 0.0
    time_accept: float = 0.0
    predicted_seconds: float = 0.0
    predicted_base_seconds: float = 0.0
    rounds_without_draft: float = 0.0

    def add(self, stats: GenerationStats) -> None:
        """Those of one more generation."""
        self.num_rounds += stats.num_rounds
        self.num_drafts += stats.num_drafts
        self.num_draft_tokens += stats.num_draft_tokens
        self.num_accepted_tokens += stats.num_accepted_tokens
        accepted, drafted = per_position(stats)
        add_to(self.accepted_at, accepted)
        add_to(self.drafted_at, drafted)
        add_to(self.histogram, list(stats.accepted_histogram))
        for source, counts in stats.by_source.items():
            own = self.by_source.setdefault(source, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                own[name] += count
        self.time_draft += stats.time_draft
        self.time_verify += stats.time_verify
        self.time_accept += stats.time_accept
        self.predicted_seconds += stats.predicted_seconds
        self.predicted_base_seconds += stats.predicted_base_seconds
        self.rounds_without_draft += stats.chose_base * stats.num_rounds

    @property
    def mean_draft_length(self) -> float | None:
        """Tokens of a draft; None without any."""
        return self.num_draft_tokens / self.num_drafts if self.num_drafts else None

    @property
    def acceptance_rate(self) -> float | None:
        """Share of drafted tokens that stayed."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens of a round with a draft: those accepted, and the model's own."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None

    @property
    def acceptance_rate_per_position(self) -> list[float]:
        """Share of the drafts that were so long whose first, second .. token stayed."""
        pairs = zip(self.accepted_at, self.drafted_at, strict=True)
        return [accepted / drafted if drafted else 0.0 for accepted, drafted in pairs]

    @property
    def predicted_speedup(self) -> float | None:
        """What the engine's cost model expected."""
        if not self.predicted_seconds:
            return None
        return self.predicted_base_seconds / self.predicted_seconds

    @property
    def chose_base(self) -> float | None:
        """Share of rounds without a draft."""
        return self.rounds_without_draft / self.num_rounds if self.num_rounds else None


def per_position(stats: GenerationStats) -> tuple[list[float], list[float]]:
    """How many drafts had a token accepted, and had a token at all, at each position.

    The second follows from the rate where any was accepted; positions where none was share what is
    left of all drafted tokens.
    """
    rates, histogram = stats.acceptance_rate_per_position, stats.accepted_histogram
    accepted = [float(sum(histogram[i + 1 :])) for i in range(len(rates))]
    drafted = [a / rate if rate else 0.0 for a, rate in zip(accepted, rates, strict=True)]
    unknown = [i for i, rate in enumerate(rates) if not rate]
    left = stats.num_draft_tokens - sum(drafted)
    for i in unknown:
        drafted[i] = left / len(unknown)
    return accepted, drafted


def add_to(sums: list[float] | list[int], values: list[float] | list[int]) -> None:
    """Adds up place by place; the list grows as needed."""
    sums.extend([0] * (len(values) - len(sums)))
    for i, value in enumerate(values):
        sums[i] += value  # type: ignore[call-overload]
