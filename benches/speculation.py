"""Base against speculative decoding: what `spikelet bench` measures, for models and for shapes.

    python benches/speculation.py models bundled path/to/model ..
    python benches/speculation.py forced [--shapes ..] [--formats ..] [--acceptance 0.5,0.7,0.9]
    python benches/speculation.py copying [--shapes ..] [--formats ..]

`models` takes trained models as they are, with all that they bring along. `forced` takes random
models of published shapes with a random prophet of the usual size (one block, 8,192 tokens it can
guess, tied head: 7 % of the model's weights), and accepts its guesses with a given probability: it
shows what the machine does at such a rate, and the text is not the model's. `copying` takes such
models from where their text repeats itself: there it is theirs. All write
`results/speculation-NAME.json` and charts, unless they are quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import harness
import numpy as np
import shapes
from numpy.typing import NDArray
from safetensors.numpy import save_file
from shapes import SHAPES, Shape

import spikelet
from spikelet import bench
from spikelet.bench.figures import rounded
from spikelet.bench.plots import draw
from spikelet.bench.report import joined

GUESSED = 8192
REVISION = 1
"""Of the recipe of random prophets."""


def prophet_tensors(shape: Shape, rows: int) -> dict[str, NDArray[np.generic]]:
    """Seeded random weights of a prophet as wide as its model, with a head tied to the model's."""
    rng = np.random.default_rng(2)
    c = shape.hidden
    made: dict[str, NDArray[np.generic]] = {}
    for name in ("ln_hidden", "ln_emb", "ln_out", "blocks.0.ln1", "blocks.0.ln2"):
        made[f"{name}.weight"] = np.ones(c, np.float32)
        made[f"{name}.bias"] = np.zeros(c, np.float32)
    matrices = {"fuse": 2 * c}
    matrices |= {f"blocks.0.att.{name}": c for name in ("key", "value", "receptance", "output")}
    matrices |= {f"blocks.0.ffn.{name}": c for name in ("key", "value", "receptance")}
    for name, columns in matrices.items():
        scale = np.float32(columns**-0.5)
        made[f"{name}.weight"] = rng.standard_normal((c, columns), dtype=np.float32) * scale
    for part, mixes in (("att", "kvr"), ("ffn", "kr")):
        for mix in mixes:
            made[f"blocks.0.{part}.time_mix_{mix}"] = rng.random((1, 1, c), np.float32)
    made["blocks.0.att.time_decay"] = rng.uniform(-5, 2, c).astype(np.float32)
    made["blocks.0.att.time_first"] = rng.standard_normal(c, dtype=np.float32)
    made["draft_ids"] = np.sort(rng.choice(shape.vocab, rows, replace=False)).astype(np.int32)
    return made


def write_prophet(shape: Shape, folder: Path, rows: int = GUESSED) -> None:
    """Puts a random prophet into the folder of a model."""
    model = spikelet.load(folder)
    prophet = folder / "prophet"
    prophet.mkdir(exist_ok=True)
    save_file(prophet_tensors(shape, rows), prophet / "model.safetensors")
    config = {
        "model_type": "prophet",
        "block": "rwkv4",
        "hidden_size": shape.hidden,
        "num_hidden_layers": 1,
        "intermediate_size": shape.hidden,
        "target_hidden_size": shape.hidden,
        "vocab_size": shape.vocab,
        "draft_vocab_size": rows,
        "num_leading": 2,
        "layer_norm_epsilon": 1e-5,
        "tied_head": True,
        "spike_embedding": model.config.spike_embedding,
        "model_fingerprint": model.fingerprint,
        "model_sha256": model.sha256,
    }
    (prophet / "config.json").write_text(json.dumps(config, indent=1))


def with_prophet(shape: Shape, cache: Path) -> Path:
    """A random model with a random prophet, beside the one without, whose files it shares."""
    source = shapes.model_folder(shape, cache)
    folder = source.with_name(f"{source.name}-prophet-{REVISION}")
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished, copy_function=os.link)
        write_prophet(shape, unfinished)
        unfinished.replace(folder)
    return folder


def measure_models(args: argparse.Namespace) -> list[bench.Report]:
    """Trained models, with all methods that they have."""
    found = []
    for word in args.models:
        model = spikelet.load(word, dtype=args.dtype, threads=args.threads)
        found.append(
            bench.run(
                model,
                methods=args.methods.split(","),
                temperatures=[float(t) for t in args.temperatures.split(",")],
                max_new_tokens=48 if args.quick else args.tokens,
                prompts_per_class=2 if args.quick else 4,
                repetitions=args.repetitions,
            )
        )
    return found


def measure_forced(args: argparse.Namespace) -> list[bench.Report]:
    """Random models of true shapes at given rates of acceptance."""
    found = []
    for name in args.shapes.split(","):
        folder = with_prophet(SHAPES[name], args.cache)
        for dtype in args.formats.split(","):
            model = spikelet.load(folder, dtype=dtype, threads=args.threads)
            found += [
                bench.run(
                    model,
                    classes=["random"],
                    methods=["prophet"],
                    num_speculative_tokens=lengths(args.lengths),
                    temperatures=[0.0],
                    forced_acceptance=float(rate),
                    max_new_tokens=24 if args.quick else args.tokens,
                    prompts_per_class=1,
                    repetitions=args.repetitions,
                )
                for rate in args.acceptance.split(",")
            ]
    return found


def measure_copying(args: argparse.Namespace) -> list[bench.Report]:
    """Random models of true shapes, from where their greedy text repeats itself."""
    found = []
    for name in args.shapes.split(","):
        folder = shapes.model_folder(SHAPES[name], args.cache)
        for dtype in args.formats.split(","):
            model = spikelet.load(folder, dtype=dtype, threads=args.threads)
            found.append(
                bench.run(
                    model,
                    prompts={"copy": [repeating(model)]},
                    methods=["ngram"],
                    num_speculative_tokens=lengths(args.lengths),
                    temperatures=[0.0],
                    max_new_tokens=24 if args.quick else args.tokens,
                    repetitions=args.repetitions,
                )
            )
    return found


def repeating(model: spikelet.Model) -> list[int]:
    """A prompt from which the model's greedy text goes round in a circle.

    Much of what a random model says next hangs on the last token alone, so sooner or later it comes
    back to one that it was at before.
    """
    for seed in range(16):
        prompt = np.random.default_rng(seed).integers(0, model.vocab_size, 16).tolist()
        text = model.generate(
            prompt, max_new_tokens=512, temperature=0.0, ignore_eos=True, speculative="off"
        )
        ids = [token.id for token in text]
        if any(ids[-2 * n : -n] == ids[-n:] for n in range(8, 129)):
            return prompt + ids
    raise RuntimeError("no text of this model repeats itself")


def lengths(text: str) -> list[int | str]:
    """Of drafts."""
    return [word if word == "auto" else int(word) for word in text.split(",")]


def keep(reports: Sequence[bench.Report], file: Path) -> None:
    """Writes the result and its charts."""
    report = joined(reports)
    harness.save(file, rounded(report.as_dict()))
    for chart in draw(report, file.with_suffix("")):
        print(f"written: {chart}")


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    models = commands.add_parser("models", help="trained models")
    models.add_argument("models", nargs="*", default=["bundled"], metavar="MODEL")
    models.add_argument("--dtype", default="auto")
    models.add_argument("--methods", default="auto")
    models.add_argument("--temperatures", default="0,1")
    forced = commands.add_parser("forced", help="random models at given rates of acceptance")
    forced.add_argument("--shapes", default="SpikeGPT-216M", help="default: %(default)s")
    forced.add_argument("--formats", default="bf16,q8", help="default: %(default)s")
    forced.add_argument("--acceptance", default="0.5,0.7,0.9", help="default: %(default)s")
    # A random prophet is sure of nothing, so the engine's own choice has nothing to go by.
    forced.add_argument("--lengths", default="2,4,6", help="of drafts; default: %(default)s")
    copying = commands.add_parser("copying", help="random models that copy a passage")
    copying.add_argument("--shapes", default="SpikeGPT-216M", help="default: %(default)s")
    copying.add_argument("--formats", default="bf16,q8", help="default: %(default)s")
    copying.add_argument(
        "--lengths", default="auto,8,12,16", help="of drafts; default: %(default)s"
    )
    for command in (forced, copying):
        command.add_argument("--cache", type=Path, default=shapes.default_cache())
    for command in (models, forced, copying):
        command.add_argument("--threads", type=int)
        command.add_argument("--tokens", type=int, default=128, help="default: %(default)s")
        command.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
        command.add_argument("--quick", action="store_true", help="shorter; nothing is kept")
        command.add_argument("--name", help="of the results; default: the command's")
    args = parser.parse_args()
    measure = {"models": measure_models, "forced": measure_forced, "copying": measure_copying}
    reports = measure[args.command](args)
    print(joined(reports).table())
    if not args.quick:
        keep(reports, harness.RESULTS / f"speculation-{args.name or args.command}.json")


if __name__ == "__main__":
    main()
