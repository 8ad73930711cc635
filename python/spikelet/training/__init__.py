"""Training of SpikeGPT in PyTorch; this subpackage alone imports torch, and on first use only.

    pip install 'spikelet[train]'

What trains here is what the engine loads: the modules carry the original authors' parameter names,
and ``export_model`` writes the model folder that ``spikelet.load`` opens.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikelet.training.config import RWKV4Config, SpikeGPTConfig
    from spikelet.training.data import TokenData, prepare, train_tokenizer
    from spikelet.training.errors import DataError, TrainingError
    from spikelet.training.export import export_model
    from spikelet.training.models.activity import ActivityRecord
    from spikelet.training.models.rwkv4 import RWKV4
    from spikelet.training.models.spikegpt import SpikeGPT
    from spikelet.training.predicter import Predicter
    from spikelet.training.prophet.config import ProphetConfig, ProphetTrainerConfig
    from spikelet.training.prophet.export import export_prophet, load_prophet, load_target
    from spikelet.training.prophet.learner import ModelWithProphet
    from spikelet.training.prophet.module import Prophet
    from spikelet.training.prophet.trainer import JointTrainer, ProphetTrainer
    from spikelet.training.trainer import LanguageModelTrainer, LogFieldnames, Trainer
    from spikelet.training.trainer_config import TrainerConfig

__all__ = [
    "RWKV4",
    "ActivityRecord",
    "DataError",
    "JointTrainer",
    "LanguageModelTrainer",
    "LogFieldnames",
    "ModelWithProphet",
    "Predicter",
    "Prophet",
    "ProphetConfig",
    "ProphetTrainer",
    "ProphetTrainerConfig",
    "RWKV4Config",
    "SpikeGPT",
    "SpikeGPTConfig",
    "TokenData",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "export_model",
    "export_prophet",
    "load_prophet",
    "load_target",
    "prepare",
    "train_tokenizer",
]

_HOMES = {
    "ActivityRecord": "models.activity",
    "RWKV4": "models.rwkv4",
    "RWKV4Config": "config",
    "DataError": "errors",
    "Predicter": "predicter",
    "LanguageModelTrainer": "trainer",
    "LogFieldnames": "trainer",
    "JointTrainer": "prophet.trainer",
    "ModelWithProphet": "prophet.learner",
    "Prophet": "prophet.module",
    "ProphetConfig": "prophet.config",
    "ProphetTrainer": "prophet.trainer",
    "ProphetTrainerConfig": "prophet.config",
    "export_prophet": "prophet.export",
    "load_prophet": "prophet.export",
    "load_target": "prophet.export",
    "SpikeGPT": "models.spikegpt",
    "SpikeGPTConfig": "config",
    "TokenData": "data",
    "Trainer": "trainer",
    "TrainerConfig": "trainer_config",
    "TrainingError": "errors",
    "export_model": "export",
    "prepare": "data",
    "train_tokenizer": "data",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("torch", "tokenizers", "safetensors"):
            hint = f"{error.name} is needed to train: pip install 'spikelet[train]'"
            raise ModuleNotFoundError(hint, name=error.name) from error
        raise
    return getattr(home, name)
