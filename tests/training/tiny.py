"""A text, a tokenizer and a model small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spikelet.training import SpikeGPT, SpikeGPTConfig, TokenData, Trainer, TrainerConfig
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


def tiny_trainer(folder: Path, **options: Any) -> Trainer:
    import torch

    data, tokenizer = tiny_data(folder)
    defaults: dict[str, Any] = {
        "batch_size": 2,
        "max_tokens": 20 * 2 * 16,
        "warmup_tokens": 64,
        "learning_rate": 3e-3,
        "log_interval": 1,
        "eval_interval": 0,
        "sample_tokens": 0,
    }
    config = TrainerConfig(**(defaults | options))
    torch.manual_seed(config.seed)
    model = SpikeGPT(SpikeGPTConfig(300, 16, "RWKV", 2, 24, dropout=0.1, spike_embedding=False))
    return Trainer(model, data, config, folder / "run", tokenizer)
