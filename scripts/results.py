"""Compare SpikeGPT, its twin without spikes, and RWKV-4, all of one size, on three texts.

    python scripts/results.py train DATA --work runs/results
    python scripts/results.py page --work runs/results --out docs/results

DATA holds ``wikitext-2/{train.txt.gz,valid.txt,test.txt}``, the first 4,150,000 bytes of enwik8 as
``enwik8/enwik8.first4150000.gz``, and in ``stories/`` the two files named in the bundled model's
card. ``--only TEXT/MODEL`` trains some of the nine. A run that was stopped goes on; a finished one
is left alone.

Within a text everything but the model is equal: tokens, their order, batches, schedule and seed.
``page`` writes the table's rows (Markdown), ``results.json`` and one picture of curves per text.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from spikelet.training import (
    RWKV4,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
    TokenData,
    Trainer,
    TrainerConfig,
    train_tokenizer,
)
from spikelet.training.data import load_tokens, read_documents, split_documents, write_atomically
from spikelet.training.evaluate import stream_bits
from spikelet.training.runs import find_checkpoint, run_folder

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 1
SHAPE: dict[str, Any] = {"ctx_len": 256, "n_layer": 4, "n_embd": 192}
MODELS: dict[str, Callable[[int], SpikeGPT | RWKV4]] = {
    # As the authors train: binary embedding, LIF neurons, ATan.
    "spikegpt": lambda vocab: SpikeGPT(SpikeGPTConfig(vocab_size=vocab, dropout=0.0, **SHAPE)),
    # The same without neurons: what a block computes joins the residual stream as it is.
    "twin": lambda vocab: SpikeGPT(
        SpikeGPTConfig(vocab_size=vocab, dropout=0.0, neuron="none", **SHAPE)
    ),
    "rwkv4": lambda vocab: RWKV4(RWKV4Config(vocab_size=vocab, **SHAPE)),
}


@dataclass(frozen=True)
class Text:
    """A corpus, and how a model of it is measured."""

    data: TokenData
    tokenizer: Any
    test: TokenData
    """Its training stream is the test text."""
    tokens: int
    """To train on."""
    unit: str
    units: int
    """What the test text's bits are spread over: words, or bytes."""

    def result(self, bits: float) -> float:
        """Return perplexity per word, or bits per byte."""
        per_unit = bits / self.units
        return 2**per_unit if self.unit == "word" else per_unit


def bpe(work: Path, name: str, documents: list[str]) -> Tokenizer:
    """Return a byte-level BPE of 4096 tokens, made from the training text on the first call."""
    path = work / f"{name}.tokenizer.json"
    if not path.exists():
        made = train_tokenizer(documents, 4096)
        write_atomically(path, lambda target: made.save(str(target)))
    return Tokenizer.from_file(str(path))


def wikitext(data: Path, work: Path) -> Text:
    """WikiText-2: perplexity per word; as usual each line's end counts as a word."""
    train, valid, test = (
        data / "wikitext-2" / name for name in ("train.txt.gz", "valid.txt", "test.txt")
    )
    tokenizer = bpe(work, "wikitext-2", read_documents([train]))
    words = sum(len(line.split()) + 1 for line in test.read_text("utf-8").split("\n")[:-1])
    return Text(
        load_tokens(train, tokenizer, cache=work / "cache", val_source=valid),
        tokenizer,
        load_tokens(test, tokenizer, cache=work / "cache", valid_every=0),
        1_000_000,
        "word",
        words,
    )


def enwik8(data: Path, work: Path) -> Text:
    """A prefix of enwik8, cut 90 : 5 : 5: bits per byte, which papers call bits per character."""
    raw = gzip.decompress((data / "enwik8" / "enwik8.first4150000.gz").read_bytes())
    first, second = len(raw) * 90 // 100, len(raw) * 95 // 100
    parts = {"train": raw[:first], "valid": raw[first:second], "test": raw[second:]}
    paths = {name: work / f"enwik8.{name}.txt" for name in parts}
    for name, part in parts.items():
        if not paths[name].exists():
            write_atomically(paths[name], lambda target, part=part: target.write_bytes(part))
    cache = work / "cache"
    return Text(
        load_tokens(paths["train"], "bytes", cache=cache, val_source=paths["valid"]),
        "bytes",
        load_tokens(paths["test"], "bytes", cache=cache, valid_every=0),
        2_000_000,
        "byte",
        len(parts["test"]),
    )


def stories(data: Path, work: Path) -> Text:
    """The bundled model's text: bits per byte of every 50th document, which nothing is tuned on."""
    names = ("gutenberg-children.train.txt.gz", "tinystories-excerpt.train.txt.gz")
    paths = [data / "stories" / name for name in names]
    train, test = split_documents(read_documents(paths), 50)
    tokenizer, cache = bpe(work, "stories", train), work / "cache"
    held_out = load_tokens(test, tokenizer, cache=cache, valid_every=0)
    return Text(
        load_tokens(train, tokenizer, cache=cache, val_source=test),
        tokenizer,
        held_out,
        1_000_000,
        "byte",
        held_out.train_sizes.bytes,
    )


TEXTS = {"wikitext-2": wikitext, "enwik8": enwik8, "stories": stories}


def train(args: argparse.Namespace) -> None:
    """Train what is not finished, and measure it on the test text."""
    for text_name, make_text in TEXTS.items():
        wanted = [m for m in MODELS if not args.only or f"{text_name}/{m}" in args.only]
        if not wanted:
            continue
        text = make_text(args.data, args.work)
        for model_name in wanted:
            result = args.work / f"{text_name}-{model_name}.json"
            if not result.exists():
                found = train_one(f"{text_name}-{model_name}", MODELS[model_name], text)
                line = json.dumps(found, indent=1)
                write_atomically(result, lambda path, line=line: path.write_text(line))
                print(result.stem, line, file=sys.stderr)


def train_one(name: str, make: Callable[[int], SpikeGPT | RWKV4], text: Text) -> dict[str, Any]:
    """Return what is to be known of a run, after it."""
    torch.manual_seed(SEED)
    model = make(text.data.vocab_size)
    config = TrainerConfig(
        name=name,
        device="cpu",
        batch_size=8,
        max_tokens=text.tokens,
        learning_rate=2e-3,
        lr_final=2e-5,
        warmup_tokens=100_000,
        weight_decay=0.01,
        autocast="bf16",
        seed=SEED,
        eval_iters=20,
        eval_step_interval=150,
        save_step_interval=0,
        save_seconds=120,
        keep_checkpoints=1,
        log_step_interval=25,
    )
    resume = name if run_folder(name).exists() else None
    trainer: Any = Trainer(model, config, tokenizer=text.tokenizer, resume=resume)
    started = time.monotonic()
    progress = trainer.train(text.data)
    if progress.tokens < text.tokens:
        raise SystemExit("stopped; the same command goes on")
    stream = text.test.train
    if text.unit == "word":
        stream = stream[:-1]  # the end-of-text token is none of the text's words
    start = text.test.end_of_text if text.test.end_of_text >= 0 else ord("\n")
    bits = stream_bits(model, stream, start)
    ids = torch.from_numpy(stream[:4096].astype("int64"))[None]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": progress.tokens,
        "result": text.result(bits),
        "unit": text.unit,
        "bits_per_token": bits / len(stream),
        "bits_per_byte": bits / text.test.train_sizes.bytes,
        "firing_rate": firing_rate(model, ids),
        "seconds": progress.seconds,
        "wall_seconds": time.monotonic() - started,
    }


def firing_rate(model: SpikeGPT | RWKV4, ids: torch.Tensor) -> float | None:
    """Return the mean over all neuron layers; None for a model without neurons."""
    rates = model.eval().firing_rates(ids) if model.neurons else []
    return sum(rates) / len(rates) if rates else None


def page(args: argparse.Namespace) -> None:
    """Write table, figures and curves from finished runs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "spikelet"
    from matplotlib import pyplot as plt

    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for text_name in TEXTS:
        figure, axes = plt.subplots(figsize=(6, 3.6))
        for model_name in MODELS:
            path = args.work / f"{text_name}-{model_name}.json"
            if not path.exists():
                continue
            results.setdefault(text_name, {})[model_name] = json.loads(path.read_text())
            log = find_checkpoint(run_folder(path.stem), None).parent / "train_log.csv"
            with log.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            points = [(int(r["tokens"]) / 1e6, float(r["val_loss"])) for r in rows if r["val_loss"]]
            axes.plot(*zip(*points, strict=True), marker=".", label=model_name)
        axes.set(xlabel="million tokens", ylabel="validation loss, nats per token", title=text_name)
        axes.legend()
        figure.tight_layout()
        target = args.out / f"{text_name}.svg"
        write_atomically(target, lambda path, f=figure: f.savefig(path, metadata={"Date": None}))
    text = json.dumps(results, indent=1)
    write_atomically(args.out / "results.json", lambda path: path.write_text(text + "\n"))
    for text_name, found in results.items():
        for model_name, result in found.items():
            rate = result["firing_rate"]
            print(
                f"| {text_name} | {model_name} | {result['parameters'] / 1e6:.2f} M "
                f"| {result['tokens'] / 1e6:.1f} M | {result['result']:.4g} per {result['unit']} "
                f"| {result['bits_per_byte']:.3f} | {'-' if rate is None else f'{rate:.2f}'} |"
            )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("train", train), ("page", page)):
        command = commands.add_parser(name, help=(function.__doc__ or "").rstrip("."))
        command.add_argument("--work", type=Path, required=True, help="folder of runs and cache")
        command.set_defaults(function=function)
        if name == "train":
            command.add_argument("data", type=Path, metavar="DATA")
            command.add_argument("--only", action="append", metavar="TEXT/MODEL")
        else:
            command.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    os.environ["SPIKELET_HOME"] = str(arguments.work)  # where runs go by their names
    arguments.function(arguments)
