"""Train prophets of several kinds side by side for one model, and compare what they are worth.

    python scripts/compare_prophets.py MODEL TEXT... --work runs/kinds --steps 600

All learn from the same passes of the model over the same text, so that they differ in their kind
only. The model writes that text and the one that is measured on, from beginnings in TEXT; what is
held out begins held out texts. Prints the table of docs/prophets.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spikelet
from spikelet.training import Prophet, ProphetConfig, ProphetTrainerConfig, load_target
from spikelet.training.data import Streams, load_tokenizer, load_tokens, write_atomically
from spikelet.training.models.language_model import LanguageModel
from spikelet.training.prophet.acceptance import Acceptance, Chain, measure
from spikelet.training.prophet.drafts import prophet_loss, teach
from spikelet.training.prophet.module import frequent_ids, weights_per_token
from spikelet.training.prophet.samples import own_text
from spikelet.training.trainer.optim import make_optimizer
from spikelet.training.trainer.schedule import learning_rate

CHAINS = (Chain(0.0), Chain(0.8), Chain(1.0))
GUESSES = 4


@dataclass
class Kind:
    """A prophet in the race."""

    name: str
    shape: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)


def kinds(n_embd: int, draft_vocab: int) -> list[Kind]:
    """Return the kinds: each differs from the first in what its name says."""
    usual = {"n_embd": n_embd, "draft_vocab": draft_vocab}
    return [
        Kind("one RWKV-4 block, KL, two leading states", usual),
        Kind("hard labels (CE)", usual, {"loss": "ce"}),
        Kind("KL, then acceptance", usual, {"loss": "acceptance"}),
        Kind(
            "KL, then acceptance, at temperature 0.8",
            usual,
            {"loss": "acceptance", "temperature": 0.8},
        ),
        Kind("two blocks", {**usual, "n_layer": 2}),
        Kind("SpikeGPT block", {**usual, "block": "spikegpt"}),
        Kind("the model's own head", {**usual, "tied_head": True}),
        Kind("one leading state", {**usual, "num_leading": 1}),
        Kind("four leading states", {**usual, "num_leading": 4}),
        Kind("half the channels", {**usual, "n_embd": n_embd // 2}),
    ]


def texts(args: argparse.Namespace) -> list[np.ndarray]:
    """Return the model's texts to train and to measure on, drawn on the first call."""
    found = []
    data = load_tokens(
        list(args.texts), load_tokenizer(args.model), cache=args.work / "cache", valid_every=50
    )
    for seed, (part, size) in enumerate((("train", args.own_tokens), ("valid", 4096))):
        path = args.work / f"own.{part}.bin"
        if not path.exists():
            drawn = own_text(
                spikelet.load(args.model, threads=args.threads),
                getattr(data, part),
                size,
                end_of_text=data.end_of_text,
                draws=((0.8, 1.0), (1.0, 1.0), (0.0, 1.0)) if part == "train" else ((0.8, 1.0),),
                seed=seed,
            )
            write_atomically(path, drawn.tofile)
        found.append(np.fromfile(path, data.train.dtype))
    return found


def race(
    args: argparse.Namespace, target: LanguageModel, stream: np.ndarray
) -> list[tuple[Kind, Prophet]]:
    """Train all kinds on one stream."""
    config = ProphetTrainerConfig(
        learning_rate=args.learning_rate, lr_final=args.learning_rate / 100, warmup_tokens=50_000
    )
    contestants = []
    chosen = kinds(args.n_embd, args.draft_vocab)
    for kind in [chosen[n] for n in args.only or range(len(chosen))]:
        torch.manual_seed(1)
        shape = ProphetConfig(**kind.shape).for_model(
            target.config.n_embd, target.config.vocab_size
        )
        ids = frequent_ids(stream, target.config.vocab_size, shape.draft_vocab)
        prophet = Prophet(shape, target.config, ids)
        prophet.start_from(target)
        contestants.append((kind, prophet, make_optimizer(prophet, config)))
    dealer, state = Streams(stream, args.ctx_len, config.batch_size, 1), None
    tokens, started = config.batch_size * args.ctx_len, time.monotonic()
    for step in range(args.steps):
        ids, targets = dealer.batch(step * config.batch_size, config.batch_size)
        rate = learning_rate(config, (step + 1) * tokens, args.steps * tokens)
        shown = []
        with torch.autocast("cpu", torch.bfloat16):
            lesson, state = teach(target, ids, targets, state)
            for kind, prophet, optimizer in contestants:
                value = prophet_loss(
                    prophet, lesson, num_steps=3, target_head=target.head.weight, **kind.loss
                )
                value.backward()
                torch.nn.utils.clip_grad_norm_(prophet.parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
                shown.append(f"{value.item():.3f}")
        if step % 20 == 19:
            left = (time.monotonic() - started) / (step + 1) * (args.steps - step - 1)
            print(f"{step + 1}/{args.steps} {' '.join(shown)} {left:.0f} s left", file=sys.stderr)
    return [(kind, prophet) for kind, prophet, _ in contestants]


def table(rows: list[tuple[str, float, list[Acceptance]]]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| prophet | weights | greedy | temperature 0.8 | temperature 1 | of 4 | same noise |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, cost, found in rows:
        each = [", ".join(f"{value:.3f}" for value in one.each) for one in found]
        usual = found[1]
        lines.append(
            f"| {name} | {100 * cost:.1f} % | {' | '.join(each)} | {sum(usual.so_far):.2f} "
            f"| {sum(usual.coupled_so_far):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, train, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--work", type=Path, required=True, help="folder of texts and results")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ctx-len", type=int, default=256)
    parser.add_argument("--own-tokens", type=int, default=300_000)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--n-embd", type=int, default=96)
    parser.add_argument("--draft-vocab", type=int, default=256)
    parser.add_argument("--only", type=int, nargs="*", metavar="N", help="kinds, from 0")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    train, valid = texts(args)
    target = load_target(args.model)
    rows = []
    for kind, prophet in race(args, target, train):
        found = measure(prophet, target, valid[:4096], num_steps=GUESSES, chains=CHAINS)
        cost = prophet.weights_per_step() / weights_per_token(target)
        rows.append((kind.name, cost, found))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    part = "".join(f"-{n}" for n in args.only or ())
    with (args.work / f"kinds{part}.csv").open("w", newline="") as file:
        columns = {k: v for one in rows[0][2] for k, v in one.row().items()}
        writer = csv.DictWriter(file, ["kind", "weights", *columns])
        writer.writeheader()
        for name, cost, found in rows:
            figures = {k: v for one in found for k, v in one.row().items()}
            writer.writerow({"kind": name, "weights": cost, **figures})


if __name__ == "__main__":
    main()
