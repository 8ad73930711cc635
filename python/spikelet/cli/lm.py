"""`spikelet lm`: language models by the name of their run, in DarwinKit's manner of speaking."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from spikelet.cli.fields import add_fields, given_fields
from spikelet.cli.options import HelpFormatter
from spikelet.cli.terminal import UsageError, stderr, stdout

if TYPE_CHECKING:
    from spikelet.training.data import TextTokenizer

EPILOG = """\
Options are written with dashes or, as in DarwinKit, with underscores.

examples:
  spikelet lm train --dataset stories.txt --tokenizer bpe SpikeGPT --name fox --vocab_size 4096 \\
      --n_layer 4 --n_embd 256 --ctx_len 256 --max_step 2000
  spikelet lm show
  spikelet lm predict SpikeGPT fox "Once upon a time" --ctx_len 200
  spikelet lm train --dataset stories.txt --resume fox SpikeGPT --max_step 4000
"""
INTERRUPTED = 130
_CONFIGS = {"SpikeGPT": "SpikeGPTConfig", "RWKV4": "RWKV4Config"}
_SAME = {"GPT": "SpikeGPT", "RWKV_RNN": "SpikeGPT"}
"""DarwinKit's names of the class, and of its form for generation."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the three commands."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="lm_command", metavar="COMMAND", required=True)
    train = _add(commands, "train", "train a language model under a name")
    _configure_train(train)
    predict = _add(commands, "predict", "write on after a text, with a model that was trained")
    _configure_predict(predict)
    _add(commands, "show", "the trained models and their checkpoints, by time")


def _add(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(leaf=parser)
    return parser


def _configure_train(parser: argparse.ArgumentParser) -> None:
    from spikelet import training

    parser.add_argument(
        "--dataset",
        metavar="D",
        required=True,
        help="a text file (.txt, .jsonl, .gz), or a data set on the hub: NAME or NAME:CONFIG",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="'bpe': one of --vocab_size tokens, trained on the data; 'bytes'; 'chars'; a file or "
        "folder; the name of a model; a name on the hub (default: bpe, or that of --resume)",
    )
    parser.add_argument(
        "--resume", metavar="R", help="NAME or NAME:CHECKPOINT to go on with, or to start from"
    )
    parser.add_argument("--fork", metavar="F", help="name of a fork: edited code for the model")
    kinds = parser.add_subparsers(dest="kind", metavar="TYPE", required=True)
    for kind, config in _CONFIGS.items():
        child = _add(kinds, kind, f"train a {kind}")
        add_fields(child, "model", getattr(training, config), flag_words=True)
        add_fields(child, "training", training.TrainerConfig, flag_words=True)


def _configure_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="TYPE", choices=[*_CONFIGS, *_SAME], help="SpikeGPT, RWKV4")
    parser.add_argument("model", metavar="NAME[:CHECKPOINT]", help="of a trained model")
    parser.add_argument("prompt", metavar="PROMPT", help="the text begins with it")
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu: the engine; cuda: the torch module (default: cpu)"
    )
    parser.add_argument(
        "--ctx-len",
        "--ctx_len",
        type=int,
        default=512,
        metavar="N",
        help="most tokens of prompt and new text together (default: 512)",
    )
    for name, kind in {"temperature": float, "top-p": float, "seed": int}.items():
        parser.add_argument(f"--{name}", type=kind, metavar=name.upper())


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    commands = {"train": _train, "predict": _predict, "show": _show}
    return commands[args.lm_command](args)


def _train(args: argparse.Namespace) -> int:
    import torch

    from spikelet import training

    trainer_config, resumed = _trainer_config(args)
    model_config = _model_config(args, resumed)
    tokenizer = _tokenizer(args, model_config.vocab_size, resumed, trainer_config.valid_every)
    if model_config.vocab_size != tokenizer.vocab_size and resumed is None:
        if "vocab_size" in given_fields(args, type(model_config)) and args.tokenizer != "bpe":
            stderr().line(
                f"vocab_size is {tokenizer.vocab_size}, as the tokenizer's, and not the "
                f"{model_config.vocab_size} asked for"
            )
        model_config.vocab_size = tokenizer.vocab_size
    torch.manual_seed(trainer_config.seed)
    model = getattr(training, args.kind)(model_config)
    trainer = training.Trainer(
        model, tokenizer=tokenizer, config=trainer_config, resume=args.resume, fork=args.fork
    )
    with trainer:
        trainer.train(args.dataset)
    return INTERRUPTED if getattr(trainer, "interrupted", False) else 0


def _trainer_config(args: argparse.Namespace) -> tuple[Any, str | None]:
    """The configuration of training, and the name of the run whose model and weights it takes."""
    from spikelet import training
    from spikelet.training import runs

    given = given_fields(args, training.TrainerConfig)
    resumed = None if args.resume is None else runs.parse_resume(args.resume)[0]
    named = given.get("name") or resumed
    name = given["name"] = named or _free_name(args.kind)
    if resumed == name:  # it goes on as it began, but for what is asked now
        folder = runs.training_folder(runs.find_run(name))
        before = runs.read_json(folder / "trainer_config.json")
        known = {field.name for field in fields(training.TrainerConfig)}
        given = {key: value for key, value in before.items() if key in known} | given
    config = training.TrainerConfig(**given)
    if named is None:
        stderr().line(f"the run is called {name}")
    return config, resumed


def _free_name(kind: str) -> str:
    from spikelet.training import runs

    taken = {run.name for run in runs.list_runs()}
    return next(name for n in range(1, 10**9) if (name := f"{kind}-{n}") not in taken)


def _model_config(args: argparse.Namespace, resumed: str | None) -> Any:
    """What the options say, or the configuration of the run that is resumed."""
    from spikelet import training
    from spikelet.errors import OptionError
    from spikelet.training import runs

    config = getattr(training, _CONFIGS[args.kind])
    given = given_fields(args, config)
    if resumed is None:
        return config(**given)
    saved = runs.read_json(runs.training_folder(runs.find_run(resumed)) / "config.json")
    for name, value in given.items():
        if value != saved.get(name, value):
            raise OptionError(
                f"--{name.replace('_', '-')} is {saved[name]} in {resumed}, and stays so: it is "
                "part of the model"
            )
    return config(**saved)


def _tokenizer(
    args: argparse.Namespace, vocab_size: int, resumed: str | None, valid_every: int
) -> TextTokenizer:
    from spikelet.training.data import as_tokenizer, train_on_source
    from spikelet.training.predicter import LanguageModelPredicter

    if args.tokenizer is None and resumed is not None:
        return LanguageModelPredicter.get_tokenizer(resumed)
    if args.tokenizer in (None, "bpe"):
        return as_tokenizer(train_on_source(args.dataset, vocab_size, valid_every))
    return as_tokenizer(args.tokenizer, args.dataset)


def _predict(args: argparse.Namespace) -> int:
    from spikelet.training import runs
    from spikelet.training.predicter import LanguageModelPredicter

    name, checkpoint = runs.parse_resume(args.model)
    external = LanguageModelPredicter.get_external_config_json(name) or {}
    trained = external.get("model_class", args.kind)
    if _SAME.get(trained, trained) != _SAME.get(args.kind, args.kind):
        raise UsageError(f"{name} is a {trained}, not a {args.kind}")
    predicter = LanguageModelPredicter.from_pretrained(name, args.device, checkpoint)
    sampling = {key: getattr(args, key) for key in ("temperature", "top_p", "seed")}
    given = {key: value for key, value in sampling.items() if value is not None}
    out = stdout()
    pieces = predicter.predict(args.prompt, ctx_len=args.ctx_len, **given)
    out.model_text(args.prompt, "dim")
    for piece in pieces:
        out.model_text(piece)
    out.line()
    return 0


def _show(_args: argparse.Namespace) -> int:
    from spikelet import home
    from spikelet.training import runs

    out = stdout()
    found = runs.list_runs()
    if not found:
        out.line(f"no trained models under {home()}")
    for run in found:
        status = "running" if run.running else "finished" if run.finished else "not finished"
        out.line(f"{out.paint(run.name, 'bold')}  {status}")
        for number, path in enumerate(run.checkpoints, 1):
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            out.line(f"  {number}. {path.stem}  {written}")
    return 0
