"""How to train: one dataclass of options. Without torch: the command line shows it at once."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

from spikelet.errors import OptionError
from spikelet.training.runs import valid_name

_CHOICES = {
    "schedule": ("cosine", "trapezoid"),
    "optimizer": ("adamw", "adam", "muon"),
    "autocast": ("f32", "bf16"),
}
_AT_LEAST_ONE = (
    "batch_size", "max_step", "grad_accumulation", "device_num", "log_step_interval",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "max_tokens", "grad_norm_clip", "warmup_tokens", "final_tokens", "lr_final", "weight_decay",
    "num_workers", "eval_iters", "eval_step_interval", "save_step_interval", "save_seconds",
    "keep_checkpoints", "max_epochs", "epoch_length_fixed", "epoch_save_frequency",
    "sample_tokens", "spike_rate_penalty", "seed", "valid_every",
)  # fmt: skip
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass
class TrainerConfig:
    """Options of a run; ``Trainer`` and its subclasses read them.

    A subclass may give a field another default with or without a type: ``device = "cuda"``.

    Args:
        name: of the run, which is also its folder; None writes nothing to disk.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        batch_size: windows per forward pass and process.
        max_step: optimiser steps of the run.
        max_tokens: length of the run in tokens, in place of ``max_step``; 0 leaves it to that.
        learning_rate: peak.
        beta1: Adam's decay of the mean of gradients.
        beta2: Adam's decay of the mean of their squares.
        eps: Adam's.
        grad_norm_clip: largest norm of the whole gradient; 0 turns clipping off.
        lr_decay: follow the schedule; False keeps ``learning_rate`` throughout.
        warmup_tokens: the rate rises linearly from ``lr_final`` over so many tokens.
        final_tokens: where the schedule reaches ``lr_final``; 0 is the run's length.
        lr_final: last rate.
        device_num: processes in all; more than one are started by ``torchrun``.
        num_workers: batches that a background thread prepares ahead; 0 makes them in the loop.
        eval_iters: batches per validation; 0 takes the whole validation text.
        eval_step_interval: steps between validations; 0 validates at the end only.
        save_step_interval: steps between checkpoints; 0 writes none on the way.
        max_epochs: with ``epoch_length_fixed`` sets ``max_step`` to their product.
        epoch_length_fixed: steps that count as an epoch.
        epoch_save_frequency: epochs between checkpoints, in place of ``save_step_interval``.
        grad_accumulation: forward passes per optimiser step.
        optimizer: ``"adamw"`` (decay on matrices of the blocks and the head), ``"adam"``, the
            authors' choice, without any decay, or ``"muon"`` for the matrices of the blocks and
            AdamW for the rest.
        weight_decay: AdamW and Muon only.
        schedule: ``"cosine"``, or ``"trapezoid"``: constant, then linear down over the last
            ``decay_share`` of the run, which lets one move the end on resume without regret.
        decay_share: see ``schedule``.
        autocast: ``"f32"`` or ``"bf16"``, type of the matrix products' inputs; weights stay f32.
        seed: of dropout and data order.
        log_step_interval: steps between rows of the log.
        save_seconds: seconds between checkpoints besides ``save_step_interval``, of which the
            newest stays; 0 turns them off.
        keep_checkpoints: newest checkpoints that stay; 0 keeps all.
        sample_tokens: length of the sample drawn at each validation; 0 draws none.
        sample_prompt: what samples continue.
        carry_state: every row reads on where its last window ended, with the state it left there
            (truncated back-propagation through time); else each window starts afresh.
        gradient_checkpointing: keep only block inputs and compute the rest again in the backward
            pass: less memory, about a third more time.
        compile: run the model through ``torch.compile``.
        spike_rate_penalty: times the mean firing rate is added to the loss that is minimised.
        tensorboard: also write the log for TensorBoard.
        valid_every: hold out every so-maniest document where no validation text is given; 0 holds
            out nothing.
    """

    name: str | None = None
    device: str = "auto"
    batch_size: int = 2
    max_step: int = 100
    max_tokens: int = 0
    learning_rate: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    grad_norm_clip: float = 1.0
    lr_decay: bool = True
    warmup_tokens: int = 0
    final_tokens: int = 0
    lr_final: float = 1e-5
    device_num: int = 1
    num_workers: int = 0
    eval_iters: int = 100
    eval_step_interval: int = 0
    save_step_interval: int = 100
    max_epochs: int = 0
    epoch_length_fixed: int = 0
    epoch_save_frequency: int = 0
    grad_accumulation: int = 1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    decay_share: float = 0.3
    autocast: str = "f32"
    seed: int = 0
    log_step_interval: int = 1
    save_seconds: float = 300.0
    keep_checkpoints: int = 0
    sample_tokens: int = 0
    sample_prompt: str = ""
    carry_state: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    spike_rate_penalty: float = 0.0
    tensorboard: bool = False
    valid_every: int = 50

    def __init_subclass__(cls, **options: Any) -> None:
        """Give an override without a type the type of its field, so that it becomes a default.

        ``@dataclass`` alone would take ``device = "cuda"`` for a class attribute that the inherited
        default then hides.
        """
        super().__init_subclass__(**options)
        own = inspect.get_annotations(cls)
        known: dict[str, Any] = {}
        for base in reversed(cls.__mro__[1:]):
            known |= inspect.get_annotations(base)
        untyped = {name: known[name] for name in vars(cls) if name in known and name not in own}
        cls.__annotations__ = {**own, **untyped}

    def __post_init__(self) -> None:
        if self.name is not None:
            valid_name(self.name)
        if self.device is not None and not _DEVICE.fullmatch(str(self.device)):
            raise OptionError(
                f"device is {self.device!r}; known are 'auto', 'cpu', 'cuda' and 'cuda:N'"
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} is {getattr(self, name)!r}; known are {list(known)}")
        self._take_epochs()
        for name in _AT_LEAST_ONE:
            self._check(name, getattr(self, name) >= 1, "at least 1 is needed")
        for name in _AT_LEAST_ZERO:
            self._check(name, getattr(self, name) >= 0, "0 or more is needed")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "it must be above 0")
        self._check("beta1", 0 <= self.beta1 < 1, "it must lie in [0, 1)")
        self._check("beta2", 0 <= self.beta2 < 1, "it must lie in [0, 1)")
        self._check("eps", self.eps > 0, "it must be above 0")
        self._check("decay_share", 0 < self.decay_share <= 1, "it must lie in (0, 1]")
        self._check("valid_every", self.valid_every != 1, "1 would leave nothing to train on")
        if self.lr_decay and self.lr_final > self.learning_rate:
            raise OptionError(
                f"lr_final is {self.lr_final}, above learning_rate {self.learning_rate}: the rate "
                "falls from one to the other (lr_decay=False keeps it constant)"
            )

    def _check(self, name: str, holds: bool, needed: str) -> None:
        if not holds:
            raise OptionError(f"{name} is {getattr(self, name)}; {needed}")

    def _take_epochs(self) -> None:
        for name in ("max_epochs", "epoch_save_frequency"):
            if getattr(self, name) > 0 and self.epoch_length_fixed < 1:
                raise OptionError(
                    f"{name} is {getattr(self, name)}; it needs epoch_length_fixed, the steps of "
                    "an epoch"
                )
        if self.max_epochs > 0:
            self.max_step = self.max_epochs * self.epoch_length_fixed
        if self.epoch_save_frequency > 0:
            self.save_step_interval = self.epoch_save_frequency * self.epoch_length_fixed

    @property
    def betas(self) -> tuple[float, float]:
        """Return ``(beta1, beta2)``."""
        return self.beta1, self.beta2
