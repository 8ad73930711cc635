"""Optimisers by name: which parameters decay, and which get an optimiser of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from spikelet.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spikelet.training.trainer_config import TrainerConfig


class SeveralOptimizers:
    """Optimisers of disjoint parameters that step together."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; setting ``group["lr"]`` acts on the part."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Take one step with each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


Optimizer = torch.optim.Optimizer | SeveralOptimizers


def make_optimizer(model: nn.Module, config: TrainerConfig) -> Optimizer:
    """Return what ``config.optimizer`` names.

    Weight decay acts on the matrices of the blocks and on the head, but neither on the embedding
    nor on norms and the vectors of time mixing. Muon takes the matrices of the blocks.
    """
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    # One kernel per step instead of one per parameter, where torch has it for the device.
    common["fused"] = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **common)
    inner: list[Tensor] = []
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or name == "emb.weight":
            rest.append(parameter)
        elif config.optimizer == "muon" and name != "head.weight":
            inner.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], **common)
    if config.optimizer == "adamw":
        return adamw
    return SeveralOptimizers(_muon(inner, config), adamw)


def _muon(parameters: list[Tensor], config: TrainerConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise OptionError(
            f"optimizer is 'muon'; torch {torch.__version__} has none, 2.9 or later is needed"
        )
    # With this scaling one learning rate serves both optimisers.
    return torch.optim.Muon(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
