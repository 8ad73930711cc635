"""How sparse trained models are: relu² density and firing rates by layer, and what zeros spare.

    python benches/density.py [MODEL ..] [--text FILE] [--tokens N] [--json FILE]

A model reads what it wrote itself, sampled at temperature 1, or the head of a text. Without a model
it is the bundled one. Density is the share of relu²'s outputs that are not zero; an output of zero
spares a row of `ffn.value`. *Spared* is what those rows have of the bytes of matrices that a decode
step reads, in f32 or 16 bits alike: the engine skips them where so many are zero that it pays.
Nothing here depends on the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import numpy as np
import plots

import spikelet

PROMPT = "Once upon a time"
COLUMNS = (
    "model", "layers x hidden", "density by layer", "mean", "firing after time mixing",
    "after channel mixing", "spared per token (16 bits)", "of all",
)  # fmt: skip


def own_text(model: spikelet.Model, tokens: int) -> list[int]:
    """What the model writes: text like that it was trained on, which every machine can make."""
    return model.generate(
        PROMPT, max_new_tokens=tokens, temperature=1.0, top_k=0, top_p=1.0, seed=1, ignore_eos=True
    ).run().ids  # fmt: skip


def measure(name: str, model: spikelet.Model, ids: list[int]) -> dict[str, Any]:
    """The row of one model over these tokens."""
    config = model.config
    trace = model.trace(ids)
    density = np.asarray(trace.relu2_density, np.float64).mean(axis=1)
    rates = np.asarray(trace.firing_rates, np.float64)
    wide, deep, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    spared = float((1 - density).sum()) * wide * inner
    read = deep * (5 * wide**2 + 2 * wide * inner) + config.vocab_size * wide
    return {
        "model": name,
        "layers": deep,
        "hidden": wide,
        "tokens": len(ids),
        "density": density.tolist(),
        "mean_density": float(density.mean()),
        # RWKV-4 and twins without neurons have no rates.
        "firing_rates": rates.tolist(),
        "spared_bytes_16_bit": 2 * spared,
        "spared_share": spared / read,
    }


def listed(values: list[float]) -> str:
    """One figure for each layer."""
    return " ".join(f"{value:.2f}" for value in values) or "-"


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    rates = row["firing_rates"]
    return harness.table_line(
        (
            row["model"],
            f"{row['layers']} x {row['hidden']}",
            listed(row["density"]),
            f"{row['mean_density']:.2f}",
            listed([rate[0] for rate in rates]),
            listed([rate[1] for rate in rates]),
            f"{row['spared_bytes_16_bit'] / 1e3:.0f} KB",
            f"{row['spared_share']:.0%}",
        )
    )


def main() -> None:
    """Reads with every model and prints its row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: the bundled model")
    parser.add_argument("--text", type=Path, help="default: what the model writes itself")
    parser.add_argument("--tokens", type=int, default=1024, help="default: %(default)s")
    parser.add_argument("--json", type=Path, default=harness.RESULTS / "density.json")
    args = parser.parse_args()
    machine = harness.machine()
    print(harness.describe(machine))
    print(harness.table_head(COLUMNS))
    rows = []
    for word in args.models or ["bundled"]:
        model = spikelet.load(word)
        if args.text:
            ids = model.tokenizer.encode(args.text.read_text())[: args.tokens]
        else:
            ids = own_text(model, args.tokens)
        rows.append(measure(Path(word).name, model, ids))
        print(line(rows[-1]), flush=True)
    harness.save(args.json, {"machine": machine, "rows": rows})
    plots.lines(
        args.json.with_suffix(".svg"),
        {row["model"]: (range(row["layers"]), row["density"], "o-") for row in rows},
        ("layer", "share of relu² outputs that are not zero"),
        "Density of channel mixing on the model's own text",
    )


if __name__ == "__main__":
    main()
