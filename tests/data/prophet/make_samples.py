"""Makes the prophets beside this file: random ones for two golden models, with their known answers.

    python tests/data/prophet/make_samples.py

`spikegpt-tiny` is narrower than its model and spikes; `rwkv4-tiny` is as wide, with weights in half
precision and a tied head. `expected.safetensors` holds what `tests/reference` says of drafts that
begin with one and with two true pairs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
TESTS = HERE.parent.parent
sys.path.insert(0, str(TESTS))

from reference import naive_prophet  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "spikegpt-tiny": {
        "block": "spikegpt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "draft_vocab_size": 40,
        "tied_head": False,
    },
    "rwkv4-tiny": {
        "block": "rwkv4",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "draft_vocab_size": 24,
        "tied_head": True,
    },
}


def fingerprint(tensors: dict[str, Any]) -> str:
    """A model's fingerprint, from the description in the engine's `weights/fingerprint.rs`."""
    types = {"float32": "F32", "float16": "F16"}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{types[tensor.dtype.name]}\0{shape}\0".encode())
        digest.update(tensor.tobytes()[:4096])
    return digest.hexdigest()


def make(name: str, seed: int) -> None:
    """Write one prophet."""
    rng = np.random.default_rng(seed)
    folder = TESTS / "golden" / name
    target = load_file(folder / "model.safetensors")
    model = json.loads((folder / "config.json").read_text())
    wide = model["hidden_size"]
    config = {"model_type": "prophet", **SHAPES[name]}
    config |= {
        "target_hidden_size": wide,
        "vocab_size": model["vocab_size"],
        "num_leading": 2,
        "layer_norm_epsilon": 1e-5,
        "spike_embedding": model.get("spike_embedding", False),
        "model_fingerprint": fingerprint(target),
        "model_sha256": "0" * 64,
    }
    tensors = random_tensors(config, rng)
    hidden = rng.normal(0, 2, (9, wide)).astype(np.float32)
    tokens = rng.integers(0, model["vocab_size"], 10).astype(np.int64)
    expected: dict[str, Any] = {"hidden": hidden, "tokens": tokens}
    for pairs in (1, 2):
        # hidden[i] is that after tokens[i].
        guesses, logits, stand_ins = naive_prophet(
            tensors, config, target, hidden[-pairs:], tokens[-pairs:].tolist(), 6
        )
        expected |= {
            f"guesses.{pairs}": np.array(guesses, dtype=np.int64),
            f"logits.{pairs}": logits.astype(np.float32),
            f"stand_ins.{pairs}": stand_ins.astype(np.float32),
        }
    out = HERE / name
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, out / "model.safetensors")
    save_file(expected, out / "expected.safetensors")


def random_tensors(config: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Weights that let signals through."""
    wide, narrow = config["target_hidden_size"], config["hidden_size"]
    inner, count = config["intermediate_size"], config["draft_vocab_size"]
    dtype = np.float16 if config["tied_head"] else np.float32
    tensors: dict[str, Any] = {}

    def vector(name: str, low: float, high: float, width: int = narrow) -> None:
        tensors[name] = rng.uniform(low, high, width).astype(dtype)

    def matrix(name: str, outputs: int, inputs: int, scale: float = 1.5) -> None:
        values = rng.normal(0, scale / np.sqrt(inputs), (outputs, inputs))
        tensors[name] = values.astype(dtype)

    def norm(name: str, width: int = narrow) -> None:
        vector(f"{name}.weight", 0.7, 1.3, width)
        vector(f"{name}.bias", -0.2, 0.2, width)

    norm("ln_hidden", wide)
    norm("ln_emb", wide)
    matrix("fuse.weight", narrow, 2 * wide)
    for i in range(config["num_hidden_layers"]):
        norm(f"blocks.{i}.ln1")
        norm(f"blocks.{i}.ln2")
        att, ffn = f"blocks.{i}.att", f"blocks.{i}.ffn"
        vector(f"{att}.time_decay", -4, 2)
        vector(f"{att}.time_first", -1, 1)
        for mix in (f"{att}.time_mix_k", f"{att}.time_mix_v", f"{att}.time_mix_r"):
            vector(mix, 0, 1)
        for mix in (f"{ffn}.time_mix_k", f"{ffn}.time_mix_r"):
            vector(mix, 0, 1)
        for part in ("key", "value", "receptance"):
            matrix(f"{att}.{part}.weight", narrow, narrow)
        matrix(f"{att}.output.weight", narrow, narrow, 4.0)
        matrix(f"{ffn}.key.weight", inner, narrow)
        matrix(f"{ffn}.receptance.weight", narrow, narrow)
        matrix(f"{ffn}.value.weight", narrow, inner, 4.0)
    if narrow != wide:
        matrix("up.weight", wide, narrow, 4.0)
    norm("ln_out", wide if config["tied_head"] else narrow)
    if not config["tied_head"]:
        matrix("head.weight", count, narrow, 4.0)
    ids = rng.choice(config["vocab_size"], count, replace=False)
    tensors["draft_ids"] = np.sort(ids).astype(np.int32)
    return tensors


if __name__ == "__main__":
    for number, name in enumerate(SHAPES):
        make(name, number)
