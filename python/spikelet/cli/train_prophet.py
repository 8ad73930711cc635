"""`spikelet train-prophet`: a small network that guesses ahead for a model, in its folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.fields import add_fields, given_fields
from spikelet.cli.terminal import Progress

if TYPE_CHECKING:
    from spikelet.training import ProphetConfig, ProphetTrainer, ProphetTrainerConfig, TokenData

EPILOG = """\
MODEL itself stays as it is. The prophet goes into MODEL/prophet, where 'spikelet generate' finds
it; checkpoints, train_log.csv and acceptance.csv (how many guesses would be accepted) are in
MODEL/prophet/training. Ctrl-C saves a checkpoint and ends; --resume goes on from the newest.

--own-tokens lets the model write so many tokens, at temperatures 0, 0.7 and 1, and trains on them:
best as a second stage, with --resume, a larger --max-tokens and --loss acceptance.

examples:
  spikelet train-prophet stories stories.txt --max-tokens 2000000
  spikelet train-prophet stories stories.txt --resume --max-tokens 3000000 \\
      --own-tokens 500000 --loss acceptance
"""
INTERRUPTED = 130
_UNUSED = ("name", "sample_tokens", "sample_prompt", "spike_rate_penalty", "gradient_checkpointing")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options: shape and training of a prophet, under the names of the fields."""
    from spikelet.training.prophet.config import ProphetConfig, ProphetTrainerConfig

    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="model folder, or name of a model or run")
    parser.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="what the model was trained on, or alike",
    )
    parser.add_argument("--valid", type=Path, metavar="TEXT", help="text to validate on")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="go on from the newest checkpoint, or from this one",
    )
    parser.add_argument(
        "--own-tokens",
        type=int,
        default=0,
        metavar="N",
        help="train on so many tokens that the model writes, from beginnings in TEXT (default: 0)",
    )
    parser.add_argument(
        "--export-dtype",
        default="f16",
        choices=["f32", "bf16", "f16"],
        help="type of the prophet's weights (default: f16)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (torch's default)")
    add_fields(parser, "prophet", ProphetConfig)
    add_fields(parser, "training", ProphetTrainerConfig, without=_UNUSED)


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on training, and exports; 0 at the end of the run, 130 when stopped."""
    import torch

    import spikelet
    from spikelet.training import ProphetTrainer, load_target
    from spikelet.training.data import load_tokenizer, load_tokens
    from spikelet.training.prophet.export import FOLDER

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    folder = spikelet.find_model(args.model)
    shape, config = _configs(args, folder)
    target = load_target(folder)
    tokenizer = load_tokenizer(folder)
    data = load_tokens(
        list(args.texts), tokenizer, valid_every=config.valid_every, val_source=args.valid
    )
    if args.own_tokens > 0:
        data = _own_data(args, folder, data, config.seed)
    trainer: ProphetTrainer = ProphetTrainer(
        target,
        _prophet(folder, shape, target, data, config.seed),
        config,
        export_dtype=args.export_dtype,
        tokenizer=tokenizer,
        root=folder,
        resume=None if args.resume is None else f"{FOLDER}:{args.resume}".removesuffix(":"),
    )
    trainer.train(data)
    return INTERRUPTED if trainer.interrupted else 0


def _configs(args: argparse.Namespace, folder: Path) -> tuple[ProphetConfig, ProphetTrainerConfig]:
    """Return what the options say; a resumed run keeps its shape and what they leave open."""
    from spikelet.errors import OptionError
    from spikelet.training import runs
    from spikelet.training.prophet.config import ProphetConfig, ProphetTrainerConfig
    from spikelet.training.prophet.export import FOLDER

    training = folder / FOLDER / "training"
    shape, options = given_fields(args, ProphetConfig), given_fields(args, ProphetTrainerConfig)
    begun = (training / "trainer_config.json").exists()
    if args.resume is None:
        if begun:
            raise OptionError(f"{folder / FOLDER} holds a run already; --resume continues it")
        return ProphetConfig(**shape), ProphetTrainerConfig(**options, name=FOLDER)
    if not begun or not runs.checkpoints(folder / FOLDER):
        raise OptionError(f"{folder / FOLDER} holds no checkpoint to resume")
    saved: dict[str, Any] = runs.read_json(training / "config.json")
    for name, value in shape.items():
        if value != saved.get(name):
            raise OptionError(
                f"--{name.replace('_', '-')} was {saved.get(name)} when the run began, and stays "
                "so: it is part of the prophet"
            )
    before = ProphetTrainerConfig(**runs.read_json(training / "trainer_config.json"))
    return ProphetConfig(**saved), replace(before, **options)


def _prophet(folder: Path, shape: ProphetConfig, target: Any, data: TokenData, seed: int) -> Any:
    """Return an untrained prophet of the most frequent tokens."""
    import torch

    from spikelet.training import Prophet
    from spikelet.training.prophet.export import fingerprint
    from spikelet.training.prophet.module import frequent_ids

    full = shape.for_model(target.config.n_embd, target.config.vocab_size)
    torch.manual_seed(seed)
    ids = frequent_ids(data.train, target.config.vocab_size, full.draft_vocab)
    prophet = Prophet(full, target.config, ids)
    prophet.start_from(target)
    prophet.model_fingerprint = fingerprint(folder / "model.safetensors")
    return prophet


def _own_data(args: argparse.Namespace, folder: Path, data: TokenData, seed: int) -> TokenData:
    from spikelet.training.prophet.samples import own_data

    with Progress("the model writes", args.own_tokens) as bar:
        return own_data(
            folder,
            data,
            args.own_tokens,
            threads=args.threads,
            seed=seed,
            progress=lambda done, total: bar.update(done, total=total),
        )
