"""`spikelet train`: train a SpikeGPT on text files, into a model folder."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from spikelet.training import SpikeGPTConfig, TrainerConfig

EPILOG = """\
OUT becomes a model folder that `spikelet generate --model OUT` reads; the run's checkpoints,
samples and train_log.csv are in OUT/training. Ctrl-C saves a checkpoint and ends; --resume goes on
from the newest.

examples:
  spikelet train stories.txt --out stories --n-layer 4 --n-embd 256 --ctx-len 256 --vocab-size 4096
  spikelet train stories.txt --out stories --resume --max-tokens 20000000
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of the model, and those of the run, under the names of the fields."""
    from spikelet.training.config import SpikeGPTConfig, TrainerConfig

    parser.epilog = EPILOG
    parser.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="UTF-8 text files (.gz allowed); lines of <|endoftext|> separate documents",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of the run")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="a tokenizer.json with an <|endoftext|> token; else a byte-level BPE of at most "
        "--vocab-size tokens is trained on the text",
    )
    parser.add_argument(
        "--valid-every", type=int, default=50, metavar="N", help="hold out every N-th document (50)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument(
        "--export-dtype",
        default="f32",
        choices=["f32", "bf16", "f16"],
        help="type of OUT's weights",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (torch's default)")
    _add_fields(parser.add_argument_group("model"), SpikeGPTConfig)
    _add_fields(parser.add_argument_group("training"), TrainerConfig)


def _add_fields(group: argparse._ArgumentGroup, config: type) -> None:
    """Offer every field as an option; one that is not given stays None, and its default counts."""
    texts = _field_help(config.__doc__ or "")
    for field in fields(config):
        default = field.default
        options: dict[str, Any] = {"default": None, "metavar": field.name.upper()}
        if isinstance(default, bool):
            options = {"default": None, "action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            options |= {"type": float, "nargs": len(default)}
        else:
            options["type"] = type(default)
        text = f"{texts.get(field.name, '')} (default: {default})".replace("%", "%%")
        group.add_argument(f"--{field.name.replace('_', '-')}", help=text, **options)


def _field_help(docstring: str) -> dict[str, str]:
    """Read the ``Args:`` section of a dataclass: field name to its text."""
    _, _, section = docstring.partition("Args:")
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "") for name, text in entries}


def _given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the fields of ``config`` that the command line set."""
    values = {field.name: getattr(args, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    """Train, or go on training, and export; 0 when the run reached its end, 130 when stopped."""
    import torch

    from spikelet.errors import OptionError
    from spikelet.training import SpikeGPT, Trainer, export_model, prepare
    from spikelet.training.trainer import checkpoints

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if checkpoints(args.out) and not args.resume:
        raise OptionError(f"{args.out} holds a run already; --resume continues it")
    if args.resume and not checkpoints(args.out):
        raise OptionError(f"{args.out} holds no checkpoint to resume")
    model_config, trainer_config = _configs(args)
    tokenizer = _tokenizer(args, model_config)
    data = prepare(args.texts, tokenizer, args.out / "training" / "cache", args.valid_every)
    if not args.resume:
        model_config = replace(model_config, vocab_size=tokenizer.get_vocab_size())
    torch.manual_seed(trainer_config.seed)
    trainer = Trainer(SpikeGPT(model_config), data, trainer_config, args.out, tokenizer)
    trainer.resume()
    trainer.run()
    export_model(trainer.model, args.out, tokenizer, args.export_dtype)
    return INTERRUPTED if trainer.stop_requested else 0


INTERRUPTED = 130


def _configs(args: argparse.Namespace) -> tuple[SpikeGPTConfig, TrainerConfig]:
    """Return what the options say; a resumed run keeps its model and what they leave open."""
    from spikelet.errors import OptionError
    from spikelet.training import SpikeGPTConfig, TrainerConfig
    from spikelet.training.trainer import checkpoints, saved_configs

    model, trainer = _given(args, SpikeGPTConfig), _given(args, TrainerConfig)
    if not args.resume:
        return SpikeGPTConfig(**model), TrainerConfig(**trainer)
    model_config, trainer_config = saved_configs(checkpoints(args.out)[-1])
    for name, value in model.items():
        if value != getattr(model_config, name):
            raise OptionError(
                f"--{name.replace('_', '-')} was {getattr(model_config, name)} when the run began, "
                f"and stays so: it is part of the model"
            )
    return model_config, replace(trainer_config, **trainer)


def _tokenizer(args: argparse.Namespace, config: SpikeGPTConfig) -> Tokenizer:
    """Return the run's tokenizer: its own on resume, else the one given, else a new BPE."""
    from tokenizers import Tokenizer

    from spikelet.training.data import (
        read_documents,
        split_documents,
        train_tokenizer,
        write_atomically,
    )
    from spikelet.training.errors import DataError

    own = args.out / "tokenizer.json"
    path = own if args.resume or args.tokenizer is None else args.tokenizer
    if path is own and not args.resume:
        train, _ = split_documents(read_documents(args.texts), args.valid_every)
        tokenizer = train_tokenizer(train, config.vocab_size)
    else:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path}: not a tokenizer.json: {error}") from error
    if not args.resume:
        write_atomically(own, lambda target: tokenizer.save(str(target)))
    return tokenizer
