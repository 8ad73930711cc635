"""The names of DarwinKit's ``darkit`` package: a script written for it changes its imports only.

    from darkit.lm.main import Trainer, Predicter                       # before
    from darkit.lm.models.SpikeGPT import SpikeGPT, SpikeGPTConfig, TrainerConfig

    from spikelet.compat.darkit import (                                # after
        Predicter, SpikeGPT, SpikeGPTConfig, Trainer, TrainerConfig,
    )

What behaves otherwise, and why, is in docs/darwinkit.md.
"""

from __future__ import annotations

from spikelet._models import home
from spikelet.training import (
    LogFieldnames,
    Predicter,
    SpikeGPT,
    SpikeGPTConfig,
    Trainer,
    TrainerConfig,
)

__all__ = [
    "DARWIN_KIT_HOME",
    "FabricTrainer",
    "LogFieldnames",
    "Predicter",
    "SpikeGPT",
    "SpikeGPTConfig",
    "SpikeGPTTrainConfig",
    "Trainer",
    "TrainerConfig",
]

FabricTrainer = Trainer
SpikeGPTTrainConfig = TrainerConfig
DARWIN_KIT_HOME = str(home())

_MISSING = {
    "SpikeLM": "a BERT-like model",
    "SpikeLMConfig": "a BERT-like model",
    "SpikeLMTrainConfig": "a BERT-like model",
    "SpikingLlama": "a transformer",
}


def __getattr__(name: str) -> object:
    """Say of what is not here why it is not."""
    if name in _MISSING:
        raise ImportError(
            f"{name} is {_MISSING[name]}, and spikelet has recurrent models only; a module of your "
            "own can be trained with a subclass of Trainer"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
