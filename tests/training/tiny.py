"""A text, a tokenizer and a model small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spikelet.training import (
    LanguageModelTrainer,
    SpikeGPT,
    SpikeGPTConfig,
    TokenData,
    Trainer,
    TrainerConfig,
)
from spikelet.training.data import prepare, train_tokenizer

_SENTENCES = ["The cat sat on the mat.", "A dog ran over the hill!", "Why does the bird sing?"]
DOCUMENTS = [
    f"Story {n}. " + " ".join(_SENTENCES[(n + i) % 3] for i in range(6)) for n in range(40)
]


def text_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(DOCUMENTS))
    return path


def tiny_data(folder: Path) -> tuple[TokenData, Tokenizer]:
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    return prepare([text_file(folder)], tokenizer, folder / "cache", valid_every=10), tokenizer


def tiny_config(**options: Any) -> TrainerConfig:
    """20 steps of 2 windows of 16 tokens."""
    defaults: dict[str, Any] = {
        "name": "run",
        "device": "cpu",
        "max_step": 20,
        "warmup_tokens": 64,
        "learning_rate": 3e-3,
        "save_step_interval": 0,
        "valid_every": 10,
    }
    return TrainerConfig(**(defaults | options))


def tiny_model(**options: Any) -> SpikeGPT:
    """A model whose weights are always the same."""
    import torch

    torch.manual_seed(0)
    config = {"dropout": 0.1, "spike_embedding": False, **options}
    return SpikeGPT(SpikeGPTConfig(300, 16, "RWKV", 2, 24, **config))


def tiny_trainer(
    folder: Path, resume: str | None = None, model: SpikeGPT | None = None, **options: Any
) -> LanguageModelTrainer:
    """A trainer whose runs lie in ``folder``."""
    trainer = Trainer(
        tiny_model() if model is None else model,
        tiny_config(**options),
        tokenizer=train_tokenizer(DOCUMENTS, 300),
        root=folder,
        resume=resume,
    )
    assert isinstance(trainer, LanguageModelTrainer)
    return trainer
