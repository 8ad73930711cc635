"""Train the prophet of the model that comes with spikelet.

    python scripts/train_prophet_bundled.py TEXT... --work runs/prophet
    python scripts/train_prophet_bundled.py TEXT... --work runs/prophet --export

TEXT are the files that the model was trained on. The model writes texts that begin as theirs do,
mostly with its default sampling, and the prophet learns from the model's distributions on them: in
a first part their divergence, in a second the share of guesses that would be accepted. Started
again with the same ``--work``, it goes on. ``--export`` writes the prophet into the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import spikelet
from spikelet.training import (
    Prophet,
    ProphetConfig,
    ProphetTrainer,
    ProphetTrainerConfig,
    TokenData,
    export_prophet,
    load_prophet,
    load_target,
    runs,
)
from spikelet.training.data import prepare, write_atomically
from spikelet.training.models.language_model import LanguageModel
from spikelet.training.prophet.acceptance import Chain, measure
from spikelet.training.prophet.export import fingerprint
from spikelet.training.prophet.module import frequent_ids, weights_per_token
from spikelet.training.prophet.samples import as_data, own_text
from spikelet.training.prophet.trainer import describe

MODEL = Path(__file__).parent.parent / "python" / "spikelet" / "bundled"
SHAPE = ProphetConfig(n_embd=96, draft_vocab=1536, ctx_len=256)
USUAL = (0.8, 0.95)  # temperature and top-p of the bundled model's generation_config.json
DRAWS = (USUAL, USUAL, (1.0, 1.0), (0.7, 1.0), USUAL, (1.0, 1.0), USUAL, (0.0, 1.0))
CHAINS = (Chain(*USUAL), Chain(0.0), Chain(1.0))
TRAIN_SEED, VALID_SEED = 1, 5
OWN_TOKENS, VALID_TOKENS = 1_500_000, 12_000
MEASURED = 8_000  # tokens of each text, for the figures of the card
FIRST_TOKENS, ALL_TOKENS = 1_024_000, 3_072_000


def own_stream(work: Path, name: str, data: TokenData, threads: int) -> np.ndarray:
    """Return the model's texts, drawn on the first call."""
    path = work / f"own.{name}.bin"
    if not path.exists():
        model = spikelet.load(MODEL, threads=threads)
        train = name == "train"
        drawn = own_text(
            model,
            getattr(data, name),
            OWN_TOKENS if train else VALID_TOKENS,
            end_of_text=data.end_of_text,
            draws=DRAWS if train else (USUAL,),
            seed=TRAIN_SEED if train else VALID_SEED,
            progress=lambda done, wanted: print(f"drawn {done} of {wanted} tokens"),
        )
        write_atomically(path, drawn.tofile)
    return np.fromfile(path, np.uint16)


def train(work: Path, data: TokenData, target: LanguageModel) -> ProphetTrainer:
    """Train, or go on training; returns the trainer of the second part."""
    common = {
        "name": "prophet",
        "device": "cpu",
        "autocast": "bf16",
        "num_steps": 3,
        "step_decay": 0.5,
        "learning_rate": 3e-3,
        "lr_final": 3e-5,
        "warmup_tokens": 100_000,
        "eval_step_interval": 500,
        "eval_iters": 2,
        "save_seconds": 120.0,
        "seed": 1,
    }
    parts = [
        ProphetTrainerConfig(**common, loss="kl", max_tokens=FIRST_TOKENS, lr_decay=False),
        ProphetTrainerConfig(
            **common, loss="acceptance", temperature=0.8, max_tokens=ALL_TOKENS, decay_share=0.6
        ),
    ]
    for config in parts:
        torch.manual_seed(1)
        ids = frequent_ids(data.train, target.config.vocab_size, SHAPE.draft_vocab)
        prophet = Prophet(SHAPE, target.config, ids)
        prophet.start_from(target)
        prophet.model_fingerprint = fingerprint(MODEL / "model.safetensors")
        begun = bool(runs.checkpoints(work / "prophet"))
        trainer = ProphetTrainer(
            target,
            prophet,
            config,
            root=work,
            resume="prophet" if begun else None,
            chains=CHAINS,
        )
        if trainer.current_step < trainer.max_step:
            trainer.train(data)
            if trainer.interrupted:
                break
    return trainer


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", action="store_true", help="write it into the package")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    text = prepare(args.texts, tokenizer, args.work / "cache", valid_every=50)
    streams = [own_stream(args.work, name, text, args.threads) for name in ("train", "valid")]
    data = as_data(text, *streams)
    target = load_target(MODEL)
    trainer = train(args.work, data, target)
    if not args.export or trainer.interrupted:
        return
    export_prophet(trainer.prophet, MODEL, "f16")
    log = args.work / "prophet" / "training"
    for name in ("train_log.csv", "acceptance.csv"):
        content = (log / name).read_text()
        write_atomically(MODEL / "prophet" / name, lambda path, c=content: path.write_text(c))
    prophet = load_prophet(MODEL, target)
    cost = prophet.weights_per_step() / weights_per_token(target)
    print(f"weights per guess / weights per token: {cost:.4f}")
    for name, stream in (("the model's own text", data.valid), ("held out text", text.valid)):
        for one in measure(prophet, target, stream[:MEASURED], chains=CHAINS):
            print(f"{name}, {describe(one)}; same noise: {one.coupled}, {sum(one.coupled_so_far)}")


if __name__ == "__main__":
    main()
