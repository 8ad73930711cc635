"""What decoding will see of a prophet: how often its guesses are accepted, on a held-out text.

The contexts are those of the text, so the figures are those of decoding where the text is the
model's own. Both distributions pass temperature and top-p before they are compared, as in decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spikelet.training.prophet.drafts import guesses, teach, window_count

if TYPE_CHECKING:
    import numpy as np

    from spikelet.training.models.language_model import LanguageModel
    from spikelet.training.prophet.module import Prophet


@dataclass(frozen=True)
class Chain:
    """How a text is drawn."""

    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0

    @property
    def name(self) -> str:
        """``greedy``, ``t1``, ``t0.8`` or ``t0.8p0.95``."""
        if self.temperature <= 0:
            return "greedy"
        return f"t{self.temperature:g}" + (f"p{self.top_p:g}" if self.top_p < 1 else "")

    def apply(self, logits: Tensor) -> Tensor:
        """Return the probabilities that a token is drawn with, ``[..., vocab]``."""
        if self.temperature <= 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        probabilities = torch.softmax(logits / self.temperature, -1)
        if self.top_p >= 1:
            return probabilities
        ordered, order = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
        kept = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)


@dataclass
class Acceptance:
    """Means over all windows of a text, one entry per step of a draft."""

    chain: Chain
    each: list[float] = field(default_factory=list)
    """Probability that a guess is accepted, the tokens before it being those of the text."""
    so_far: list[float] = field(default_factory=list)
    """Product of these along each draft: that it is accepted up to here."""
    coupled: list[float] = field(default_factory=list)
    """Probability that model and prophet draw the same token with the same random numbers."""
    coupled_so_far: list[float] = field(default_factory=list)
    """Product of these along each draft."""

    def row(self) -> dict[str, float]:
        """Return the figures under names of columns."""
        kinds = {"": self.each, "_so_far": self.so_far, "_coupled": self.coupled}
        return {
            f"{self.chain.name}{kind}_{step + 1}": value
            for kind, values in kinds.items()
            for step, value in enumerate(values)
        }


DEFAULT_CHAINS = (Chain(0.0), Chain(0.8), Chain(1.0))


def token_acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Return ``sum min(p, q)``: how likely rejection sampling accepts a token drawn from q."""
    return torch.minimum(p, q).sum(-1)


def coupled_acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Return how likely both draw the same token in a race with shared exponential variables.

    Token x wins both where its variable is the smallest in both measures, with probability
    ``1 / sum_y max(p_y / p_x, q_y / q_x)``. Behind a sort by ``p / q`` the sums are cumulative.

    Args:
        p: ``[..., n]``; what is missing to 1 lies where q has nothing.
        q: ``[..., n]``, adds up to 1.
    """
    p, q = p.double(), q.double()
    both = (p > 0) & (q > 0)
    ratio = torch.where(q > 0, p / q.clamp_min(1e-300), torch.inf)
    ratio, order = torch.where(p > 0, ratio, 0.0).sort(-1, descending=True)
    p, q, both = (part.gather(-1, order) for part in (p, q, both))
    elsewhere = (1 - p.sum(-1, keepdim=True)).clamp_min(0)
    above = elsewhere + p.cumsum(-1) - p
    below = (1 - (q.cumsum(-1) - q)).clamp_min(0)
    odds = above / p.clamp_min(1e-300) + below / q.clamp_min(1e-300)
    return torch.where(both, 1 / odds, 0.0).sum(-1)


@torch.no_grad()
def measure(
    prophet: Prophet,
    target: LanguageModel,
    stream: np.ndarray,
    *,
    num_steps: int = 4,
    chains: tuple[Chain, ...] = DEFAULT_CHAINS,
    chunk: int = 256,
) -> list[Acceptance]:
    """Measure a prophet on a text, the model's state carried from its beginning to its end.

    Args:
        prophet: in its place on the model's device.
        target: the model.
        stream: ids.
        num_steps: tokens of a draft.
        chains: how tokens are drawn.
        chunk: ids per pass.
    """
    was_training = prophet.training
    prophet.eval()
    ids = torch.from_numpy(stream.astype("int64"))
    device = prophet.fuse.weight.device
    sums = [torch.zeros(4, num_steps, dtype=torch.float64) for _ in chains]
    windows, state = 0, None
    for first in range(0, len(ids) - 1, chunk):
        part = ids[first : first + chunk + 1][None].to(device)
        lesson, state = teach(target, part[:, :-1], part[:, 1:], state)
        count = window_count(part.shape[1] - 1, prophet.config.num_leading, num_steps)
        if not count:
            continue
        windows += count
        drafts = list(guesses(prophet, lesson, num_steps, target.head.weight))
        for chain, total in zip(chains, sums, strict=True):
            total.add_(_judge(prophet, lesson.logits, drafts, chain))
    prophet.train(was_training)
    if not windows:
        return []
    return [
        Acceptance(chain, *((total / windows).tolist()))
        for chain, total in zip(chains, sums, strict=True)
    ]


def _judge(
    prophet: Prophet, logits: Tensor, drafts: list[tuple[slice, Tensor]], chain: Chain
) -> Tensor:
    """Return sums over the windows: each, so far, coupled, coupled so far; one column per step."""
    p = chain.apply(logits.float())
    if chain.temperature > 0:
        p = p[..., prophet.draft_ids.long()]
    so_far = coupled_so_far = torch.ones(())
    columns = []
    for judged, guess in drafts:
        q = chain.apply(guess.float())
        if chain.temperature > 0:
            each = token_acceptance(p[:, judged], q).double()
            coupled = coupled_acceptance(p[:, judged], q)
        else:
            said = prophet.draft_ids.long()[guess.argmax(-1)]
            each = coupled = (said == logits[:, judged].argmax(-1)).double()
        so_far, coupled_so_far = so_far * each, coupled_so_far * coupled
        columns.append(torch.stack([v.sum() for v in (each, so_far, coupled, coupled_so_far)]))
    return torch.stack(columns, 1).cpu()
