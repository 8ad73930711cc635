"""A model whose speculation is as quick, as right and as well counted as a test wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import spikelet

GOLDEN = Path(__file__).parent.parent / "golden" / "spikegpt-tiny"


def stats(*, drafts: int = 4, drafted: int = 12, accepted: int = 6) -> SimpleNamespace:
    """What a generation tells."""
    return SimpleNamespace(
        prefill_seconds=0.0,
        num_rounds=drafts + 1,
        num_drafts=drafts,
        num_draft_tokens=drafted,
        num_accepted_tokens=accepted,
        acceptance_rate_per_position=[0.75, 0.5, 0.25],
        accepted_histogram=[1, 1, 1, 1],  # of 3 tokens each
        by_source={"ngram": {"num_draft_tokens": drafted, "num_accepted_tokens": accepted}},
        time_draft=1e-5,
        time_verify=1e-4,
        time_accept=1e-5,
        predicted_seconds=1.0,
        predicted_base_seconds=1.5,
        chose_base=0.2,
    )


@dataclass
class FakeModel:
    """A call takes `base` or `speculative` seconds of `now`; other text if `wrong`."""

    base: float = 0.002
    speculative: float = 0.001
    wrong: bool = False
    dtype: str = "f32"
    threads: int = 1
    now: float = 0.0

    def __post_init__(self) -> None:
        self.real = spikelet.load(GOLDEN, threads=1)
        self.path, self.config = self.real.path, self.real.config
        self.vocab_size = self.real.vocab_size
        self.calls: list[tuple[Any, int, dict[str, Any]]] = []

    @property
    def tokenizer(self) -> Any:
        return self.real.tokenizer

    def forward(self, ids: Sequence[int], state: Any) -> Any:
        return self.real.forward(ids, state)

    def new_state(self) -> Any:
        return self.real.new_state()

    def costs(self) -> dict[str, Any]:
        return {"pass": {1: 1e-3, 4: 1.4e-3}, "draft": {"prophet": {"first": 2e-4, "next": 1e-4}}}

    def generate_batch(
        self, prompts: Sequence[list[int]], *, speculative: Any, **options: Any
    ) -> list[SimpleNamespace]:
        off = speculative == "off"
        self.calls.append((speculative, len(prompts), options))
        self.now += self.base if off else self.speculative
        tokens = options["max_new_tokens"]
        first = 1 if self.wrong and not off else 0
        return [SimpleNamespace(ids=[first, *range(1, tokens)], stats=stats()) for _ in prompts]
