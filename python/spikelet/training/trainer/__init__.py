"""Training loops: ``Trainer``, what is registered with it, and the parts they are made of."""

from spikelet.training.trainer.base import Trainer
from spikelet.training.trainer.language_model import LanguageModelTrainer
from spikelet.training.trainer.log import LogFieldnames

__all__ = ["LanguageModelTrainer", "LogFieldnames", "Trainer"]

Trainer.register("SpikeGPT", LanguageModelTrainer)
Trainer.register("RWKV4", LanguageModelTrainer)
