"""Train a byte model and its prophet together, and see now and then how much faster it writes.

    python examples/train_prophet.py --data enwik8.gz --out enwik8-model
    python examples/train_prophet.py --draft model             # guesses of a second, smaller model
    python examples/train_prophet.py --dim 64 --depth 2 --prophet-dim 32 --num-batches 200

The data is any file, gzipped or not; without --data this script reads itself. The functions are
those of lucidrains' speculative-decoding (`spikelet.compat.speculative_decoding`), and so are the
constants, which are the options' defaults. At the end the pair is written as one model folder, and
the engine does both ways again.
"""

import argparse
import gzip
import random
import sys
import time
from functools import wraps
from pathlib import Path

import numpy as np
import torch
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

import spikelet
from spikelet.compat.speculative_decoding import (
    ModelWithProphetWrapper,
    base_decoding,
    speculative_decoding,
    speculative_decoding_with_prophet_model,
)
from spikelet.training import (
    RWKV4,
    Prophet,
    ProphetConfig,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
    export_model,
    export_prophet,
)

NUM_TOKENS = 256
CLIP = 0.5
MIN_INTERVAL = 10.0  # seconds between lines of progress


def options(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name, default, text, **settings):
        kind = {"type": type(default)} if default is not None else {}
        parser.add_argument(name, default=default, help=f"{text} (default: {default})", **kind)

    add("--num-batches", int(1e5), "optimiser steps")
    add("--batch-size", 4, "sequences per pass")
    add("--grad-accum-every", 4, "passes per step")
    add("--learning-rate", 1e-4, "of Adam")
    add("--prime-length", 128, "bytes of the prompt")
    add("--generate-every", 100, "steps between comparisons")
    add("--generate-length", 512, "bytes of prompt and text together")
    add("--seq-len", 512, "bytes of a training sequence")
    add("--gamma", 5, "guesses per round")
    add("--temperature", 1.0, "of all draws")
    add("--filter-thres", 0.9, "share of the vocabulary that is never drawn")
    add("--lenience", 1.0, "below 1 accepts more than it should")
    add("--num-leading-start-tokens", 2, "true hidden states that a draft begins with")
    add("--dim", 512, "channels of the model")
    add("--depth", 10, "blocks of the model")
    add("--prophet-dim", 512, "channels of the prophet, or of the small model")
    add("--prophet-depth", 2, "their blocks")
    add("--max-bytes", int(95e6), "bytes that are read of the data")
    add(
        "--train-bytes", int(90e6), "of these, what is trained on; in proportion if there are fewer"
    )
    add("--seed", 1, "of weights and data")
    parser.add_argument("--data", type=Path, default=Path(__file__), help="a file, perhaps .gz")
    parser.add_argument("--out", type=Path, help="model folder to write")
    parser.add_argument("--architecture", default="spikegpt", choices=["spikegpt", "rwkv4"])
    parser.add_argument("--draft", default="prophet", choices=["prophet", "model"])
    parser.add_argument(
        "--train-prophet", default=True, action=argparse.BooleanOptionalAction,
        help="else the prophet stays as it is drawn",
    )  # fmt: skip
    parser.add_argument(
        "--detach", default=False, action=argparse.BooleanOptionalAction,
        help="let no gradient of the prophet's into the model",
    )  # fmt: skip
    return parser.parse_args(words)


# Data


def read_data(path, max_bytes, train_bytes):
    """Return training and validation bytes; a shorter file is cut in the same proportion."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = np.frombuffer(file.read(max_bytes), dtype=np.uint8).copy()
    cut = train_bytes if len(data) == max_bytes else len(data) * train_bytes // max_bytes
    return torch.from_numpy(data[:cut]), torch.from_numpy(data[cut:])


class TextSamplerDataset(Dataset):
    """Windows that begin anywhere."""

    def __init__(self, data, seq_len):
        self.data, self.seq_len = data, seq_len

    def __getitem__(self, index):
        start = torch.randint(0, len(self.data) - self.seq_len, (1,))
        return self.data[start : start + self.seq_len + 1].long()

    def __len__(self):
        return len(self.data) // self.seq_len


def cycle(loader):
    while True:
        yield from loader


def decode_token(token):
    return chr(max(32, int(token)))


def decode_tokens(tokens):
    return "".join(map(decode_token, tokens))


# Training


def make_model(dim, depth, seq_len, architecture):
    if architecture == "rwkv4":
        return RWKV4(RWKV4Config(NUM_TOKENS, seq_len, depth, dim))
    return SpikeGPT(SpikeGPTConfig(NUM_TOKENS, seq_len, "RWKV", depth, dim, spike_embedding=False))


def train_step(net, parts, batches, optimizer):
    """One step over several batches; returns their mean losses.

    Each of ``parts`` is clipped by itself, so that one does not shorten the other's steps.
    """
    sums = []
    for batch in batches:
        total, losses = net(batch)
        (total / len(batches)).backward()
        sums.append(torch.stack(list(losses)))
    for part in parts:
        torch.nn.utils.clip_grad_norm_(part.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack(sums).mean(0).tolist()


class TwoModels(torch.nn.Module):
    """A model and a small one that learn the same text, each for itself."""

    def __init__(self, model, small):
        super().__init__()
        self.model, self.small = model, small

    def forward(self, ids):
        losses = [net(ids[:, :-1], ids[:, 1:]) for net in (self.model, self.small)]
        return sum(losses), [loss.detach() for loss in losses]


def benchmark(function):
    """Let a function also return the milliseconds it took."""

    @wraps(function)
    def timed(*args, **kwargs):
        if torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = function(*args, **kwargs)
            end.record()
            torch.cuda.synchronize()
            return result, begin.elapsed_time(end)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        return result, 1e3 * (time.perf_counter() - start)

    return timed


def compare(net, prompt, args):
    """Write a text both ways and print texts, times, and how many guesses were accepted."""
    net.eval()
    sampling = {"temperature": args.temperature, "filter_thres": args.filter_thres}
    guessing = {**sampling, "lenience": args.lenience}

    def guess(length):
        if args.draft == "model":
            pair = (net.model, net.small)
            return speculative_decoding(*pair, prompt, length, args.gamma, **guessing)
        return speculative_decoding_with_prophet_model(net, prompt, length, args.gamma, **guessing)

    short = min(args.generate_length, prompt.shape[1] + 8)
    base_decoding(net.model, prompt, short, **sampling)  # what is slow only once is not measured
    guess(short)
    base, base_ms = benchmark(base_decoding)(net.model, prompt, args.generate_length, **sampling)
    (drawn, accepted), guess_ms = benchmark(guess)(args.generate_length)
    print(f"{decode_tokens(prompt[0])}\n\n{'*' * 100}")
    print(f"\nbase decoding:\n\n{decode_tokens(base[0])}\n")
    print(f"\nspec decoding:\n\n{decode_tokens(drawn[0])}\n")
    print(f"base decoding in: {base_ms:.3f}ms\n")
    print(f"spec decoding in: {guess_ms:.3f}ms\n")
    print(f"average num accepted: {accepted:.1f} / {args.gamma}\n")
    net.train()


def write_folder(net, args, prompt):
    """Write the pair as one folder, and let the engine write a text both ways."""
    export_model(net.model.cpu(), args.out, "bytes")
    if args.draft == "prophet":
        export_prophet(net.prophet.cpu(), args.out)
    else:
        export_model(net.small.cpu(), args.out / "small", "bytes")
    print(f"written: {args.out}")
    model = spikelet.load(args.out)
    sampling = {
        "max_new_tokens": args.generate_length - prompt.shape[1],
        "temperature": args.temperature,
        "top_k": max(1, round((1 - args.filter_thres) * NUM_TOKENS)),
        "seed": args.seed,
        "ignore_eos": True,
    }
    if args.draft == "model":
        small = spikelet.load(args.out / "small")
        speculative = spikelet.SpeculativeConfig(method="draft_model", draft_model=small)
    else:
        speculative = spikelet.SpeculativeConfig(method="prophet")
    done = {}
    for way, how in (("base", "off"), ("spec", speculative)):
        done[way] = model.generate(prompt[0].tolist(), speculative=how, **sampling).run()
        rate = done[way].stats.decode_tokens_per_second
        print(f"{way} decoding by the engine: {rate:.0f} tokens per second")
    print("the same text" if done["base"].ids == done["spec"].ids else "ANOTHER TEXT")


def main(words=None):
    args = options(words)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = make_model(args.dim, args.depth, args.seq_len, args.architecture)
    if args.draft == "model":
        small = make_model(args.prophet_dim, args.prophet_depth, args.seq_len, args.architecture)
        net = TwoModels(model, small).to(device)
    else:
        shape = ProphetConfig(
            n_layer=args.prophet_depth, n_embd=args.prophet_dim, n_ffn=4 * args.prophet_dim
        )
        net = ModelWithProphetWrapper(
            model,
            Prophet(shape, model.config),
            prophet_train_length=args.gamma + 2,
            detach_model_embed_for_prophet=args.detach,
            num_leading_start_tokens=args.num_leading_start_tokens,
        ).to(device)
    second = net.small if args.draft == "model" else net.prophet
    parts = [model, second] if args.train_prophet else [model]
    for part in (model, second):
        print(f"{type(part).__name__}: {sum(p.numel() for p in part.parameters()):,} parameters")

    data_train, data_val = read_data(args.data, args.max_bytes, args.train_bytes)
    train_set = TextSamplerDataset(data_train, args.seq_len)
    val_set = TextSamplerDataset(data_val, min(args.seq_len, len(data_val) - 1))
    loader = cycle(DataLoader(train_set, batch_size=args.batch_size))
    optimizer = Adam([p for part in parts for p in part.parameters()], lr=args.learning_rate)

    started = shown = time.monotonic()
    for step in range(args.num_batches):
        net.train()
        batches = [next(loader).to(device) for _ in range(args.grad_accum_every)]
        loss, second_loss = train_step(net, parts, batches, optimizer)
        print(f"training loss: {loss:.3f}")
        print(f"training {args.draft} loss: {second_loss:.3f}".replace("model", "small model"))
        if time.monotonic() - shown > MIN_INTERVAL:
            shown = time.monotonic()
            left = (shown - started) / (step + 1) * (args.num_batches - step - 1)
            print(f"step {step + 1}/{args.num_batches}, {left:.0f} s left", file=sys.stderr)
        if step % args.generate_every == 0:
            compare(net, prime(val_set, args, device), args)
    if args.out is not None:
        write_folder(net, args, prime(val_set, args, torch.device("cpu")))


def prime(val_set, args, device):
    """Return the beginning of a random validation text."""
    return random.choice(val_set)[None, : args.prime_length].to(device)


if __name__ == "__main__":
    main()
