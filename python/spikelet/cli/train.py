"""`spikelet train`: from text files to a model folder, through a run that can be stopped."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.fields import add_fields, given_fields
from spikelet.cli.terminal import UsageError

if TYPE_CHECKING:
    from spikelet.training import RWKV4Config, SpikeGPTConfig, TrainerConfig
    from spikelet.training.data import TextTokenizer
    from spikelet.training.trainer.distributed import World

EPILOG = """\
The run becomes a model folder, which `spikelet generate --model OUT` (or NAME) reads; checkpoints,
samples and train_log.csv are in OUT/training. Ctrl-C saves a checkpoint and ends; --resume goes on
from the newest. --device-num 2 starts two processes; for several machines start this command with
torchrun.

examples:
  spikelet train stories.txt --out stories --n-layer 4 --n-embd 256 --ctx-len 256 \\
      --vocab-size 4096 --batch-size 8 --max-tokens 10000000
  spikelet train stories.txt --out stories --resume --max-tokens 20000000
"""
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of the model, and those of the run, under the names of the fields."""
    from spikelet.training.config import SpikeGPTConfig
    from spikelet.training.trainer_config import TrainerConfig

    parser.epilog = EPILOG
    parser.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="text files (.txt, .jsonl with 'text', each also .gz); lines of <|endoftext|> "
        "separate documents",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="OUT", help="folder of the run")
    place.add_argument("--name", metavar="NAME", help="name of the run, which others find it by")
    parser.add_argument(
        "--architecture", choices=["spikegpt", "rwkv4"], help="what to train (default: spikegpt)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json, folder of a model, 'bytes' or 'chars'; else a byte-level BPE of at "
        "most --vocab-size tokens is trained on the text",
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
        "--export-dtype",
        default="f32",
        choices=["f32", "bf16", "f16"],
        help="type of the model folder's weights",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (torch's default)")
    add_fields(parser, "model", SpikeGPTConfig)
    add_fields(parser, "training", TrainerConfig, without=["name"])


def run(args: argparse.Namespace) -> int:
    """Train, or go on training, and export; 0 when the run reached its end, 130 when stopped."""
    if (args.device_num or 1) > 1 and "WORLD_SIZE" not in os.environ:
        _start_processes(args.device_num)
    import torch

    from spikelet.training import RWKV4, LanguageModelTrainer, SpikeGPT, export_model
    from spikelet.training.config import RWKV4Config
    from spikelet.training.trainer.distributed import join_world

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name, root, folder = _place(args)
    _check_place(args, folder)
    model_config, config = _configs(args, folder)
    config.name = name
    world = join_world(config.device_num)
    tokenizer = _tokenizer(args, folder, model_config.vocab_size, config.valid_every, world)
    if args.resume is None:
        model_config = replace(model_config, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(config.seed)
    model = RWKV4(model_config) if isinstance(model_config, RWKV4Config) else SpikeGPT(model_config)
    resume = None if args.resume is None else f"{name}:{args.resume}".removesuffix(":")
    trainer = LanguageModelTrainer(model, config, tokenizer=tokenizer, root=root, resume=resume)
    trainer.train(args.texts, args.valid)
    if args.export_dtype != "f32" and trainer.world.is_first:
        export_model(trainer.model, folder, tokenizer, args.export_dtype)
    return INTERRUPTED if trainer.interrupted else 0


def _start_processes(count: int) -> None:
    """Become ``torchrun``, which starts this command once per process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    sys.stdout.flush()
    command = [sys.executable, *launcher, "-m", "spikelet", *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606 - there is no shell in between


def _place(args: argparse.Namespace) -> tuple[str, Path, Path]:
    """Return the run's name, the folder of runs, and the run's own."""
    from spikelet.training import runs

    if args.out is None:
        return args.name, runs.runs_root(), runs.run_folder(args.name)
    folder = args.out.resolve()
    return folder.name, folder.parent, runs.run_folder(folder.name, folder.parent)


def _check_place(args: argparse.Namespace, folder: Path) -> None:
    from spikelet.errors import OptionError
    from spikelet.training import runs

    begun = (folder / "training" / "trainer_config.json").exists()
    if args.resume is None and begun and os.environ.get("RANK", "0") == "0":
        raise OptionError(f"{folder} holds a run already; --resume continues it")
    if args.resume is not None and not runs.checkpoints(folder):
        raise OptionError(f"{folder} holds no checkpoint to resume")


def _configs(
    args: argparse.Namespace, folder: Path
) -> tuple[SpikeGPTConfig | RWKV4Config, TrainerConfig]:
    """Return what the options say; a resumed run keeps its model and what they leave open."""
    from spikelet.errors import OptionError
    from spikelet.training.config import RWKV4Config, SpikeGPTConfig
    from spikelet.training.runs import read_json
    from spikelet.training.trainer_config import TrainerConfig

    kinds: dict[str, Any] = {"spikegpt": SpikeGPTConfig, "rwkv4": RWKV4Config}
    model, trainer = given_fields(args, SpikeGPTConfig), given_fields(args, TrainerConfig)
    kind = kinds[args.architecture or "spikegpt"]
    if args.resume is None:
        unknown = set(model) - {field.name for field in fields(kind)}
        if unknown:
            raise UsageError(f"rwkv4 has no --{min(unknown).replace('_', '-')}")
        return kind(**model), TrainerConfig(**trainer)
    saved = read_json(folder / "training" / "config.json")
    external = read_json(folder / "training" / "external_config.json")
    kind = kinds["rwkv4" if external.get("model_class") == "RWKV4" else "spikegpt"]
    for name, value in model.items():
        if value != saved.get(name):
            raise OptionError(
                f"--{name.replace('_', '-')} was {saved.get(name)} when the run began, and stays "
                "so: it is part of the model"
            )
    before = TrainerConfig(**read_json(folder / "training" / "trainer_config.json"))
    return kind(**saved), replace(before, **trainer)


def _tokenizer(
    args: argparse.Namespace,
    folder: Path,
    vocab_size: int,
    valid_every: int,
    world: World,
) -> TextTokenizer:
    """Return the run's tokenizer: its own on resume, else the one given, else a new BPE."""
    from spikelet.training.data import (
        as_tokenizer,
        load_tokenizer,
        read_documents,
        split_documents,
        train_tokenizer,
    )
    from spikelet.training.trainer.distributed import wait_for_all

    if args.resume is not None:
        return load_tokenizer(folder / "training" / "tokenizer")
    if args.tokenizer is not None:
        return as_tokenizer(args.tokenizer, args.texts)
    if world.is_first:
        documents = read_documents(args.texts)
        if valid_every and not args.valid:
            documents, _ = split_documents(documents, valid_every)
        as_tokenizer(train_tokenizer(documents, vocab_size)).save(folder)
    wait_for_all(world)
    return load_tokenizer(folder / "tokenizer.json")
