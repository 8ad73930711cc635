"""Train the model that comes with spikelet, and the n-gram baseline it has to beat.

    python scripts/train_bundled.py train TEXT... --work runs/first --stage 1
    python scripts/train_bundled.py export TEXT... --work runs/first --out first
    python scripts/train_bundled.py train TEXT... --work runs/second --stage 2 --init first
    python scripts/train_bundled.py baseline TEXT... --work runs/second
    python scripts/train_bundled.py export TEXT... --work runs/second --out python/spikelet/bundled

TEXT are the two story files named in the bundled model's card. The second stage starts from what
the first exported, at a high rate again, and lets the neurons learn their decay. ``train`` goes on
by itself when ``--work`` holds a checkpoint. Tokenizer and baseline learn from the training
documents only; every 50th document is held out, and all commands measure on those.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kneser_ney import KneserNey
from safetensors.torch import load_file
from tokenizers import Tokenizer

from spikelet.training import (
    LanguageModelTrainer,
    SpikeGPT,
    SpikeGPTConfig,
    TokenData,
    TrainerConfig,
    runs,
)
from spikelet.training.data import (
    prepare,
    read_documents,
    split_documents,
    train_tokenizer,
    write_atomically,
)
from spikelet.training.evaluate import stream_bits
from spikelet.training.export import DTYPES, export_model
from spikelet.training.trainer.checkpoint import read_checkpoint

VOCAB_SIZE = 4096
VALID_EVERY = 50
ORDER = 5


@dataclass(frozen=True)
class Stage:
    """What differs between the stages of the training."""

    neuron: str
    seed: int
    """Of the first stage's weights, and of the order of the data."""
    max_tokens: int
    decay_share: float
    """Of the run over which the rate falls to its end; before, it is constant."""
    learning_rate: float
    lr_final: float
    warmup_tokens: int
    weight_decay: float


STAGES = {
    1: Stage("lif", 1, 22_000_000, 0.4, 1.5e-3, 3e-5, 500_000, 0.05),
    2: Stage("plif", 2, 22_000_000, 0.545, 2e-3, 2e-5, 400_000, 0.1),
}


def load_data(texts: list[Path], work: Path) -> tuple[TokenData, Tokenizer]:
    """Return token streams and tokenizer, made on the first call."""
    path = work / "tokenizer.json"
    if not path.exists():
        documents, _ = split_documents(read_documents(texts), VALID_EVERY)
        made = train_tokenizer(documents, VOCAB_SIZE)
        write_atomically(path, lambda target: made.save(str(target)))
    tokenizer = Tokenizer.from_file(str(path))
    return prepare(texts, tokenizer, work / "cache", VALID_EVERY), tokenizer


def baseline(args: argparse.Namespace) -> None:
    """Measure Kneser-Ney of order 5 over the model's own tokens, and over bytes."""
    data, _ = load_data(args.texts, args.work)
    size = data.valid_sizes.bytes
    words = KneserNey(data.train, VOCAB_SIZE, ORDER).bits_of(data.valid, data.end_of_text) / size
    train_bytes, valid_bytes = (
        torch.frombuffer(bytearray("\0".join(part).encode() + b"\0"), dtype=torch.uint8).numpy()
        for part in split_documents(read_documents(args.texts), VALID_EVERY)
    )
    letters = KneserNey(train_bytes, 256, ORDER).bits_of(valid_bytes) / size
    result = {"order": ORDER, "tokens_bits_per_byte": words, "bytes_bits_per_byte": letters}
    text = json.dumps(result, indent=1)
    write_atomically(args.work / "baseline.json", lambda path: path.write_text(text))
    print(text)


def train(args: argparse.Namespace) -> None:
    """Train, or go on training."""
    data, tokenizer = load_data(args.texts, args.work)
    print(f"train {data.train_sizes}\nvalid {data.valid_sizes}", file=sys.stderr)
    stage = STAGES[args.stage]
    torch.manual_seed(stage.seed)
    model = SpikeGPT(
        SpikeGPTConfig(
            vocab_size=VOCAB_SIZE,
            ctx_len=256,
            n_layer=4,
            n_embd=256,
            spike_embedding=False,
            dropout=0.0,
            neuron=stage.neuron,
        )
    )
    if args.init is not None:
        start_from(model, args.init)
    config = TrainerConfig(
        name=args.work.resolve().name,
        device="cpu",
        batch_size=8,
        max_tokens=args.max_tokens or stage.max_tokens,
        learning_rate=stage.learning_rate,
        lr_final=stage.lr_final,
        warmup_tokens=stage.warmup_tokens,
        schedule="trapezoid",
        decay_share=args.decay_share or stage.decay_share,
        weight_decay=stage.weight_decay,
        autocast="bf16",
        seed=stage.seed,
        eval_step_interval=1000,
        eval_iters=0,
        log_step_interval=50,
        save_step_interval=0,
        save_seconds=240,
        sample_tokens=100,
        sample_prompt="Once upon a time",
    )
    resume = config.name if runs.checkpoints(args.work) else None
    root = args.work.resolve().parent
    LanguageModelTrainer(model, config, tokenizer=tokenizer, root=root, resume=resume).train(data)


def start_from(model: SpikeGPT, folder: Path) -> None:
    """Take the weights of a model folder; decays that it does not have stay the usual ones."""
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.endswith((".lif1.w", ".lif2.w")) for name in missing):
        raise SystemExit(f"{folder}: not a model of this shape: {missing} {unexpected}")


def load_newest(work: Path) -> SpikeGPT:
    """Return the model of the newest checkpoint."""
    saved = read_checkpoint(runs.find_checkpoint(work))
    model = SpikeGPT(SpikeGPTConfig(**saved["model_config"]))
    model.load_state_dict(saved["state_dict"])
    return model.eval()


def export(args: argparse.Namespace) -> None:
    """Write the model folder, with log, curve and figures for the card."""
    data, tokenizer = load_data(args.texts, args.work)
    model = load_newest(args.work)
    figures: dict[str, Any] = dict(json.loads((args.work / "baseline.json").read_text()))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for dtype in dict.fromkeys(("f32", args.dtype)):
        model.load_state_dict({k: v.to(DTYPES[dtype]).float() for k, v in weights.items()})
        bits = stream_bits(model, data.valid, data.end_of_text)
        figures[f"{dtype}_bits_per_byte"] = bits / data.valid_sizes.bytes
        print(f"{dtype}: {figures[f'{dtype}_bits_per_byte']:.4f} bits per byte")
    model.load_state_dict(weights)
    ids = torch.from_numpy(data.valid[:4096].astype("int64"))[None]
    figures["firing_rates"] = model.firing_rates(ids)
    generation = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 200}
    export_model(model, args.out, tokenizer, args.dtype, generation)
    log = (args.work / "training" / "train_log.csv").read_text()
    write_atomically(args.out / "train_log.csv", lambda path: path.write_text(log))
    plot(args.out / "train_log.csv", args.out / "curve.svg", figures, data)
    text = json.dumps(figures, indent=1)
    write_atomically(args.work / "figures.json", lambda path: path.write_text(text))
    print(text)


def plot(log: Path, target: Path, figures: dict[str, Any], data: TokenData) -> None:
    """Draw training and validation loss over tokens, in bits per byte, beside the baseline."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "spikelet"
    from matplotlib import pyplot as plt

    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    per_byte = data.train_sizes.tokens / data.train_sizes.bytes / 0.693147  # nats/token to bits
    figure, axes = plt.subplots(figsize=(7, 4))
    lines = [
        (int(r["tokens"]) / 1e6, float(r["train_loss"]) * per_byte) for r in rows if r["train_loss"]
    ]
    axes.plot(*zip(*lines, strict=True), color="0.7", linewidth=0.8, label="training")
    points = [
        (int(r["tokens"]) / 1e6, float(r["val_bits_per_byte"]))
        for r in rows
        if r["val_bits_per_byte"]
    ]
    axes.plot(*zip(*points, strict=True), "o-", markersize=3, label="validation, 256-token windows")
    level = figures["tokens_bits_per_byte"]
    axes.axhline(level, color="C3", linestyle="--", label=f"Kneser-Ney, order {ORDER}, same tokens")
    axes.set(xlabel="million tokens", ylabel="bits per byte", ylim=(0.9, 1.8))
    axes.legend()
    figure.tight_layout()
    write_atomically(target, lambda path: figure.savefig(path, metadata={"Date": None}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("baseline", baseline), ("train", train), ("export", export)):
        command = commands.add_parser(name, help=(function.__doc__ or "").rstrip("."))
        command.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
        command.add_argument("--work", type=Path, required=True, help="folder of the run")
        command.set_defaults(function=function)
        if name == "train":
            command.add_argument("--stage", type=int, choices=sorted(STAGES), required=True)
            command.add_argument("--init", type=Path, metavar="FOLDER", help="model to start from")
            command.add_argument("--max-tokens", type=int, default=0, help="another length")
            command.add_argument("--decay-share", type=float, default=0.0, help="another share")
        if name == "export":
            command.add_argument("--out", type=Path, required=True, help="model folder to write")
            command.add_argument("--dtype", choices=sorted(DTYPES), default="f16")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    arguments.function(arguments)
