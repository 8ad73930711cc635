"""Modules that a trainer trains: a prophet beside a finished model, and both together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spikelet.training import loss as losses
from spikelet.training.prophet.drafts import Lesson, prophet_loss, teach

if TYPE_CHECKING:
    from collections.abc import Callable

    from spikelet.training.models.language_model import LanguageModel, State
    from spikelet.training.prophet.config import ProphetTrainerConfig
    from spikelet.training.prophet.module import Prophet


def loss_options(config: ProphetTrainerConfig) -> dict[str, Any]:
    """Return the options of ``prophet_loss``."""
    names = ("loss", "num_steps", "step_decay", "temperature")
    return {name: getattr(config, name) for name in names}


class ProphetLearner(nn.Module):
    """A prophet that learns from a finished model, with the interface of a language model.

    The model is no part of the module: it has no gradient, and no place in optimiser or checkpoint.

    Args:
        target: the model.
        prophet: learns.
        options: of ``prophet_loss``.
    """

    def __init__(self, target: LanguageModel, prophet: Prophet, **options: Any) -> None:
        super().__init__()
        self._outside = (target.eval().requires_grad_(False),)
        self.prophet, self.options, self.config = prophet, options, prophet.config
        self.gradient_checkpointing = False

    @property
    def target(self) -> LanguageModel:
        """The model."""
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProphetLearner:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.target._apply(fn, recurse)  # type: ignore[no-untyped-call]  # noqa: SLF001
        return self

    def initial_state(self, batch: int = 1) -> State:
        """Return the model's state before the first token."""
        return self.target.initial_state(batch)

    def step_loss(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        rate_penalty: float = 0.0,
        record: object = None,
    ) -> tuple[Tensor, State]:
        """Return the loss over the windows of a text, and the model's state after it."""
        lesson, after = teach(self.target, ids, targets, state)
        head = self.target.head.weight
        return prophet_loss(self.prophet, lesson, target_head=head, **self.options), after

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, every row from a fresh state."""
        return self.step_loss(ids, targets)[0]


class ModelWithProphet(nn.Module):
    """A model and its prophet that are trained together.

    With ``detach`` no gradient of the prophet's reaches the model.

    Args:
        target: the model.
        prophet: its prophet.
        weight: of the prophet's loss beside the model's.
        detach: the prophet learns from the model, and the model nothing from it.
        options: of ``prophet_loss``.
    """

    def __init__(
        self,
        target: LanguageModel,
        prophet: Prophet,
        *,
        weight: float = 1.0,
        detach: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.target, self.prophet = target, prophet
        self.weight, self.detach, self.options = weight, detach, options
        self.config = target.config
        self.gradient_checkpointing = False
        self.passes: list[tuple[Tensor, Tensor]] = []
        """The model's and the prophet's loss of every pass, until someone empties it."""

    def initial_state(self, batch: int = 1) -> State:
        """Return the model's state before the first token."""
        return self.target.initial_state(batch)

    def step_loss(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        rate_penalty: float = 0.0,
        record: Any = None,
    ) -> tuple[Tensor, State]:
        """Return the model's loss plus ``weight`` times the prophet's, and the state after it."""
        target, config = self.target, self.target.config
        target.gradient_checkpointing = self.gradient_checkpointing
        residual, after = target.residual(ids, state, None, record)
        hidden = target.ln_out(residual)
        head_loss = losses.head_loss if config.fused else losses.naive_head_loss
        own = head_loss(hidden, target.head.weight, targets, config.l2wrap)
        if record is not None:
            record.end_pass(own)
        lesson = Lesson(residual, target.embed(targets), targets, target.head(hidden.detach()))
        lesson.logits = lesson.logits.detach()  # what is learned from does not learn
        lesson = lesson.detach() if self.detach else lesson
        head = target.head.weight.detach() if self.detach else target.head.weight
        guessed = prophet_loss(self.prophet, lesson, target_head=head, **self.options)
        self.passes.append((own.detach(), guessed.detach()))
        return own + self.weight * guessed, after

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return what the model alone returns: logits, or the loss in nats."""
        result: Tensor = self.target(ids, targets)
        return result

    def generate(self, *args: Any, **options: Any) -> list[int]:
        """Draw ids with the model."""
        return self.target.generate(*args, **options)
