"""Train the model that comes with spikelet, and the n-gram baseline it has to beat.

    python scripts/train_bundled.py baseline TEXT... --work runs/bundled
    python scripts/train_bundled.py train TEXT... --work runs/bundled --max-tokens 30000000
    python scripts/train_bundled.py export TEXT... --work runs/bundled --out python/spikelet/bundled

``train`` resumes by itself when ``--work`` holds a checkpoint. The tokenizer is trained on the
training documents only; all three commands use the same split (every 50th document is held out).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from spikelet.training.data import (
    TokenData,
    prepare,
    read_documents,
    split_documents,
    train_tokenizer,
    write_atomically,
)
from spikelet.training.models.spikegpt import SpikeGPT, SpikeGPTConfig
from spikelet.training.trainer import Trainer, TrainerConfig

VOCAB_SIZE = 4096
VALID_EVERY = 50
SEED = 1


def load_data(texts: list[Path], work: Path) -> tuple[TokenData, Tokenizer]:
    """Return token streams and tokenizer, made on the first call."""
    path = work / "tokenizer.json"
    if not path.exists():
        train, _ = split_documents(read_documents(texts), VALID_EVERY)
        tokenizer = train_tokenizer(train, VOCAB_SIZE)
        write_atomically(path, lambda p: tokenizer.save(str(p)))
    tokenizer = Tokenizer.from_file(str(path))
    return prepare(texts, tokenizer, work / "cache", VALID_EVERY), tokenizer


def train(args: argparse.Namespace) -> None:
    """Train, or go on training."""
    data, tokenizer = load_data(args.texts, args.work)
    print(f"train {data.train_sizes}\nvalid {data.valid_sizes}", file=sys.stderr)
    torch.manual_seed(SEED)
    model = SpikeGPT(
        SpikeGPTConfig(
            vocab_size=VOCAB_SIZE,
            ctx_len=args.ctx_len,
            n_layer=args.layers,
            n_embd=args.channels,
            spike_embedding=False,
            dropout=args.dropout,
        )
    )
    config = TrainerConfig(
        batch_size=args.batch_size,
        max_tokens=args.max_tokens,
        learning_rate=args.learning_rate,
        min_lr_ratio=0.02,
        warmup_tokens=500_000,
        schedule="trapezoid",
        decay_share=args.decay_share,
        weight_decay=0.05,
        autocast="bf16",
        seed=SEED,
        eval_interval=args.eval_interval,
        log_interval=50,
        save_seconds=240,
    )
    trainer = Trainer(model, data, config, args.work, tokenizer)
    if trainer.resume():
        print(f"resumed at step {trainer.progress.step}", file=sys.stderr)
    trainer.run()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train",):
        command = commands.add_parser(name)
        command.add_argument("texts", nargs="+", type=Path)
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--max-tokens", type=int, default=30_000_000)
        command.add_argument("--batch-size", type=int, default=16)
        command.add_argument("--ctx-len", type=int, default=128)
        command.add_argument("--layers", type=int, default=4)
        command.add_argument("--channels", type=int, default=256)
        command.add_argument("--dropout", type=float, default=0.0)
        command.add_argument("--learning-rate", type=float, default=1.5e-3)
        command.add_argument("--decay-share", type=float, default=0.35)
        command.add_argument("--eval-interval", type=int, default=1000)
        command.set_defaults(run=train)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    arguments.run(arguments)
