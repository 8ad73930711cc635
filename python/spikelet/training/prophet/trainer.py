"""Training of prophets with all that a run has: log, checkpoints, resume, signals.

The run of a prophet for the model in MODEL lies in ``MODEL/prophet``: the prophet that the engine
loads, and beside it ``training/`` with ``train_log.csv``, ``acceptance.csv`` and checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from spikelet.errors import OptionError
from spikelet.training.errors import TrainingError
from spikelet.training.export import export_model
from spikelet.training.prophet.acceptance import DEFAULT_CHAINS, Acceptance, Chain, measure
from spikelet.training.prophet.config import ProphetTrainerConfig
from spikelet.training.prophet.export import FOLDER, export_prophet
from spikelet.training.prophet.learner import ModelWithProphet, ProphetLearner, loss_options
from spikelet.training.trainer import LanguageModelTrainer
from spikelet.training.trainer.log import CSVLogger, LanguageModelLog, trim_csv
from spikelet.training.trainer.optim import SeveralOptimizers, make_optimizer
from spikelet.training.trainer.progress import duration
from spikelet.training.trainer.step import Gradient, Stepper
from spikelet.training.trainer.validation import Validation

if TYPE_CHECKING:
    from pathlib import Path

    from spikelet.training.data import TokenData
    from spikelet.training.models.language_model import LanguageModel
    from spikelet.training.prophet.module import Prophet
    from spikelet.training.trainer.batches import Batches

ACCEPTANCE_LOG = "acceptance.csv"


@dataclass
class ProphetLog:
    """A row of a prophet's log."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Seen since the beginning."""
    seconds: float | None = None
    """Spent in training steps, over all resumes."""
    train_loss: float | None = None
    """Mean since the last row, of the loss that the run minimises."""
    val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Of the whole gradient, before clipping."""
    tokens_per_second: float | None = None


@dataclass
class JointLog(LanguageModelLog):
    """A row of the log of a model and its prophet: the model's, and one more loss."""

    prophet_loss: float | None = None
    """Mean since the last row."""


class ProphetTrainer(LanguageModelTrainer):
    """Trains a prophet for a finished model, which stays as it is.

    Args:
        target: the model, see ``export.load_target``.
        prophet: for it.
        config: its ``name`` is ``"prophet"`` for a run inside the model's folder; None writes
            nothing.
        options: of ``Trainer``; ``root`` is the model's folder.
    """

    model: ProphetLearner
    config: ProphetTrainerConfig
    _log_fieldnames: ClassVar[type] = ProphetLog

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        """Make a trainer of this class, whatever is registered for the model's."""
        return object.__new__(cls)

    def __init__(
        self,
        target: LanguageModel,
        prophet: Prophet,
        config: ProphetTrainerConfig,
        *,
        export_dtype: str = "f32",
        chains: tuple[Chain, ...] = DEFAULT_CHAINS,
        **options: Any,
    ) -> None:
        least = prophet.config.num_leading + config.num_steps
        if prophet.config.ctx_len < least:
            raise OptionError(
                f"ctx_len is {prophet.config.ctx_len}; num_leading and num_steps need {least}"
            )
        self.export_dtype, self.chains = export_dtype, chains
        self.last_acceptance: list[Acceptance] = []
        learner = ProphetLearner(target, prophet, **loss_options(config))
        super().__init__(learner, config, **options)

    @property
    def prophet(self) -> Prophet:
        """What is trained."""
        return self.model.prophet

    @property
    def _vocab_size(self) -> int:
        return int(self.model.target.config.vocab_size)

    def _get_optimizer(self) -> Any:
        return make_optimizer(self.prophet, self.config)

    def _record(self) -> None:
        return None  # a prophet's few neurons are not worth a log

    def _progress_text(self, row: LanguageModelLog, seconds_left: float) -> str:
        parts = [f"step {row.step}/{self.max_step}", f"loss {row.train_loss or 0:.4f}"]
        if row.val_loss is not None:
            parts.append(f"val loss {row.val_loss:.4f}")
        parts += [f"lr {row.learning_rate or 0:.2e}", f"{row.tokens_per_second or 0:,.0f} tok/s"]
        return "  ".join([*parts, f"{duration(seconds_left)} left"])

    def validate(self, val_dataset: TokenData) -> Validation:
        """Measure loss and acceptance on the validation text."""
        found = super().validate(val_dataset)
        config = self.config
        limit = config.eval_iters * config.batch_size * self.model.config.ctx_len
        self.last_acceptance = measure(
            self.prophet,
            self.model.target,
            val_dataset.valid[: limit + 1 if limit else None],
            num_steps=config.num_steps,
            chains=self.chains,
        )
        self._log_acceptance()
        return found

    def _log_acceptance(self) -> None:
        row: dict[str, float] = {}
        for one in self.last_acceptance:
            row |= one.row()
        path = self._saved_as(ACCEPTANCE_LOG)
        if not row:
            return
        if path is not None:
            CSVLogger(path, ["step", *row]).log({"step": self.progress.step, **row})
        self.display.say("  ".join(describe(one) for one in self.last_acceptance))

    def _init_folder(self) -> None:
        super()._init_folder()
        if self.continues and self.save_directory is not None:
            trim_csv(self.save_directory / ACCEPTANCE_LOG, self.current_step)

    def _draw_sample(self) -> None:
        """A prophet writes nothing of its own."""

    def _export(self) -> None:
        folder = self.run_directory
        if folder is None:
            return
        if folder.name != FOLDER or not (folder.parent / "config.json").exists():
            return  # not inside the model's folder: the checkpoint has it all
        export_prophet(self.prophet, folder.parent, self.export_dtype)

    def _checkpoint(self, step: int) -> dict[str, Any]:
        known = {"model_fingerprint": self.prophet.model_fingerprint}
        return super()._checkpoint(step) | known

    def _check_resumable(self, saved: dict[str, Any], path: Path) -> None:
        super()._check_resumable(saved, path)
        was, now = saved.get("model_fingerprint"), self.prophet.model_fingerprint
        if was != now:
            raise TrainingError(
                f"{path}: the prophet has learned from model {was}, but this is model {now}"
            )


def describe(acceptance: Acceptance) -> str:
    """Return the acceptance of each guess, and how many of a draft are accepted on average."""
    each = " ".join(f"{value:.3f}" for value in acceptance.each)
    return f"{acceptance.chain.name}: {each} (of a draft {sum(acceptance.so_far):.2f})"


class JointStepper(Stepper):
    """Steps of a model and its prophet, each with its own gradient norm and optimiser.

    So what the prophet does has no part in the model's steps, unless its gradient is let into the
    model.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prophet_losses: list[float] = []

    def gradient(self, position: int, record: Any = None) -> Gradient:
        """Add up both gradients; the loss that is reported is the model's own."""
        passes = self.model.passes
        passes.clear()  # type: ignore[operator, union-attr]
        both = super().gradient(position, record)
        own, guessed = torch.tensor(passes).double().mean(0).tolist()
        self.prophet_losses.append(guessed)
        return Gradient(own, both.norm)

    def update(self, rate: float, norm: float) -> None:
        """Clip both gradients, each by its own norm, and change the weights."""
        limit = self.config.grad_norm_clip or math.inf
        for part in (self.model.target, self.model.prophet):
            gradients = [p.grad for p in part.parameters() if p.grad is not None]  # type: ignore[union-attr]
            own = torch.nn.utils.get_total_norm(gradients)
            if float(own) > limit:
                torch.nn.utils.clip_grads_with_norm_(part.parameters(), limit, own)  # type: ignore[union-attr]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class JointTrainer(LanguageModelTrainer):
    """Trains a model and its prophet together; the run's folder becomes a model with a prophet.

    Args:
        model: both.
        prophet_rate: the prophet's learning rate, as a multiple of the model's.
        options: of ``Trainer``.
    """

    model: ModelWithProphet
    _log_fieldnames: ClassVar[type] = JointLog

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        """Make a trainer of this class, whatever is registered for the model's."""
        return object.__new__(cls)

    def __init__(
        self, model: ModelWithProphet, *args: Any, prophet_rate: float = 1.0, **options: Any
    ) -> None:
        self.prophet_rate = prophet_rate
        super().__init__(model, *args, **options)

    def _get_optimizer(self) -> SeveralOptimizers:
        own = make_optimizer(self.model.target, self.config)
        learner = make_optimizer(self.model.prophet, self.config)
        for group in learner.param_groups:
            group["scale"] = self.prophet_rate
        parts = [
            part
            for one in (own, learner)
            for part in (one.parts if isinstance(one, SeveralOptimizers) else (one,))
        ]
        return SeveralOptimizers(*parts)

    def _further_columns(self) -> dict[str, Any]:
        losses = self._stepper.prophet_losses if isinstance(self._stepper, JointStepper) else []
        mean = sum(losses) / len(losses) if losses else None
        losses.clear()
        return {"prophet_loss": mean}

    def _make_stepper(self, batches: Batches) -> Stepper:
        return JointStepper(self.model, self.optimizer, batches, self.config, self.world)

    def _export(self) -> None:
        folder = self.run_directory
        if folder is None:
            return
        target: Any = self.model.target
        export_model(target, folder, self.tokenizer)
        self.model.prophet.model_fingerprint = None  # the model has moved on
        export_prophet(self.model.prophet, folder)
