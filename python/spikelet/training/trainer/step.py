"""One optimiser step: forward and backward passes, clipping, update."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spikelet.training.trainer.distributed import average_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from spikelet.training.trainer.batches import Batches
    from spikelet.training.trainer.distributed import World
    from spikelet.training.trainer.optim import Optimizer
    from spikelet.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Gradient:
    """What the passes of a step gave, before the weights change."""

    loss: float
    """Mean over this process's windows, nats per token."""
    norm: float
    """Of the gradient, averaged over all processes, before clipping."""


class LossModule(nn.Module):
    """A model whose ``forward`` is the training loss: what torch's wrappers can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        """Return loss and state."""
        result: tuple[Tensor, Any] = self.model.step_loss(*args, **options)
        return result


def autocast(config: TrainerConfig, device: torch.device) -> torch.autocast:
    """Return the context in which the model runs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.autocast == "bf16")


class Stepper:
    """Runs steps; ``state`` is what the last window left, where that is carried on."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
        config: TrainerConfig,
        world: World,
    ) -> None:
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.config, self.world = config, world
        module: Any = average_gradients(world, LossModule(model))
        self.loss: Any = torch.compile(module) if config.compile else module
        self._unsynchronised = getattr(module, "no_sync", contextlib.nullcontext)
        self.state: Any = None

    def gradient(self, position: int, record: Any = None) -> Gradient:
        """Add up the gradients of the windows from ``position`` on.

        Args:
            position: number of the first window.
            record: an ``ActivityRecord`` that collects firing rates.
        """
        config = self.config
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.batches.device)
        for turn in range(config.grad_accumulation):
            inputs, targets = self.batches.get(position + turn * self.batches.stride)
            last = turn == config.grad_accumulation - 1
            with contextlib.nullcontext() if last else self._unsynchronised():
                with autocast(config, self.batches.device):
                    loss, state = self._pass(inputs, targets, position, turn, record)
                (loss / config.grad_accumulation).backward()  # type: ignore[no-untyped-call]
            self.state = [part.detach() for part in state] if config.carry_state else None
            total += loss.detach() / config.grad_accumulation
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # One wait for the device per step.
        loss_value, norm_value = torch.stack([total, norm.double()]).tolist()
        if config.spike_rate_penalty:
            loss_value = record.loss
        return Gradient(loss_value, norm_value)

    def _pass(
        self, inputs: Tensor, targets: Tensor, position: int, turn: int, record: Any
    ) -> tuple[Tensor, Any]:
        state = self.state
        if self.config.carry_state:
            begins: Any = self.batches.dealer.begins  # type: ignore[attr-defined]
            if begins(position + turn * self.batches.stride):
                state = None
        result: tuple[Tensor, Any] = self.loss(
            inputs, targets, state, rate_penalty=self.config.spike_rate_penalty, record=record
        )
        return result

    def update(self, rate: float, norm: float) -> None:
        """Clip the gradient, change the weights and forget the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = self.config.grad_norm_clip or math.inf
        if norm > limit:
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(), limit, torch.tensor(norm, device=self.batches.device)
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
