"""Drafts in training: windows from every position of a text, unrolled on the prophet's own output.

With ``h[i]`` the model's residual stream after token i, a window that begins at i reads the pairs
``(h[i], t[i+1]) .. (h[i+m-1], t[i+m])`` with ``m = num_leading``; the last gives the first guess,
which the model's distribution after ``t[i+m]`` judges. From then on the prophet's own output takes
the place of ``h``, as in decoding, while the tokens stay those of the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spikelet.training.models.language_model import LanguageModel, State
    from spikelet.training.prophet.module import Prophet

HYBRID_RATE = 3.0
"""How quickly the loss ``"acceptance"`` leaves divergence for acceptance, as that grows."""


@dataclass
class Lesson:
    """What the model did with a text, ``[batch, time, ...]``: all that a prophet learns from."""

    residual: Tensor
    """The residual stream after each token."""
    following: Tensor
    """Embedding of the next token."""
    targets: Tensor
    """The next token."""
    logits: Tensor
    """What the model says of the next token."""

    def detach(self) -> Lesson:
        """Let no gradient into the model."""
        return Lesson(
            self.residual.detach(), self.following.detach(), self.targets, self.logits.detach()
        )


@torch.no_grad()
def teach(
    target: LanguageModel, ids: Tensor, targets: Tensor, state: State | None = None
) -> tuple[Lesson, State]:
    """Run a finished model over a text; returns the state after it, too."""
    residual, after = target.residual(ids, state)
    logits = target.head(target.ln_out(residual))
    return Lesson(residual, target.embed(targets), targets, logits), after


def window_count(time: int, num_leading: int, num_steps: int) -> int:
    """Return how many windows begin in a text of ``time`` positions."""
    return max(0, time - num_leading - num_steps + 1)


def guesses(
    prophet: Prophet, lesson: Lesson, num_steps: int, target_head: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield for each step of the drafts the positions that judge it, and its logits.

    The logits are ``[batch, windows, draft_vocab]``; position ``slice[w]`` of the lesson judges the
    guess of window w.
    """
    batch, time, _ = lesson.residual.shape
    leading = prophet.config.num_leading
    windows = window_count(time, leading, num_steps)
    embedded = prophet.from_embedding(lesson.following)
    fused = prophet.from_hidden(lesson.residual) + embedded
    # [batch, windows, channels, leading] to one draft per row.
    first = fused.unfold(1, leading, 1)[:, :windows].transpose(2, 3).flatten(0, 1)
    x, state = prophet.run(first.contiguous(), prophet.initial_state(batch * windows))
    x = x[:, -1:]
    for step in range(num_steps):
        judged = slice(leading + step, leading + step + windows)
        yield judged, prophet.logits(x, target_head).view(batch, windows, -1)
        if step + 1 < num_steps:
            before = slice(leading + step, leading + step + windows)
            token = embedded[:, before].flatten(0, 1)[:, None]
            x, state = prophet.run(prophet.from_hidden(prophet.stand_in(x)) + token, state)


def prophet_loss(
    prophet: Prophet,
    lesson: Lesson,
    *,
    loss: str = "kl",
    num_steps: int = 4,
    step_decay: float = 0.8,
    temperature: float = 1.0,
    target_head: Tensor | None = None,
) -> Tensor:
    """Return the loss of all drafts in a text, a scalar: a weighted mean over their steps.

    - ``"kl"``: cross entropy with the model's probabilities of the draft vocabulary. They are not
      made to add up to 1, so a position counts for as much as lies within reach.
    - ``"ce"``: cross entropy with the text's next token; one outside the draft vocabulary does not
      count.
    - ``"acceptance"``: with a, the share of drafts that would be accepted (``sum min(p, q)``),
      and w = exp(-3 a), w times ``"kl"`` plus 1 - w times 1 - a (the hybrid of LK losses, arXiv
      2602.23881: the share alone has no slope to speak of as long as the guesses are bad).

    Args:
        prophet: what learns.
        lesson: what it learns from.
        loss: see above.
        num_steps: tokens of a draft.
        step_decay: weight of each step against the one before.
        temperature: divides the logits of both.
        target_head: the model's ``head.weight``, for a tied head.
    """
    if window_count(lesson.targets.shape[1], prophet.config.num_leading, num_steps) < 1:
        return lesson.residual.new_zeros(()) + 0.0 * prophet.fuse.weight.sum()
    ids = prophet.draft_ids.long()
    hard = loss == "ce"
    if hard:
        places = ids.new_full((lesson.logits.shape[-1],), -100)
        places[ids] = torch.arange(len(ids), device=ids.device)
        judges = places[lesson.targets]
    else:
        judges = torch.softmax(lesson.logits.float() / temperature, -1)[..., ids]
    total = lesson.residual.new_zeros(())
    weights = [step_decay**step for step in range(num_steps)]
    for weight, (judged, logits) in zip(
        weights, guesses(prophet, lesson, num_steps, target_head), strict=True
    ):
        judge = judges[:, judged].flatten(0, 1)
        scaled = logits.flatten(0, 1).float() / (1.0 if hard else temperature)
        if hard:
            count = (judge >= 0).sum().clamp_min(1)
            value = cross_entropy(scaled, judge, reduction="sum") / count
        elif loss == "kl":
            value = cross_entropy(scaled, judge)
        else:
            value = _hybrid(scaled, judge)
        total = total + weight * value
    return total / math.fsum(weights)


def _hybrid(logits: Tensor, judge: Tensor) -> Tensor:
    log_q = torch.log_softmax(logits, -1)
    accepted = torch.minimum(judge, log_q.exp()).sum(-1)
    share = torch.exp(-HYBRID_RATE * accepted.detach())
    divergence = -(judge * log_q).sum(-1)
    return (share * divergence + (1 - share) * (1 - accepted)).mean()
