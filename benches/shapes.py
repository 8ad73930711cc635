"""Random models of true shapes, written once and kept for the other benchmarks of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Shape:
    """Sizes of a published model."""

    name: str
    model_type: str
    layers: int
    hidden: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Matrix elements of all blocks: att 4 C², ffn 9 C²."""
        return self.layers * 13 * self.hidden**2

    @property
    def weights_read(self) -> int:
        """Matrix elements that a dense decode step reads: all blocks and the head."""
        return self.layer_weights + self.vocab * self.hidden


SPIKEGPT_216M = Shape("SpikeGPT-216M", "spikegpt", 18, 768, 50277)
RWKV4_169M = Shape("RWKV-4-169M", "rwkv4", 12, 768, 50277)


def write_random(shape: Shape, folder: Path) -> Path:
    """Writes `shape` with seeded random float32 weights into `folder` and returns it.

    About half of relu²'s outputs are zero, as random weights have it; trained models have more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    c, f = shape.hidden, 4 * shape.hidden
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        scale = np.float32(columns**-0.5)
        tensors[name] = rng.standard_normal((rows, columns), dtype=np.float32) * scale

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(c, np.float32)
        tensors[f"{name}.bias"] = np.zeros(c, np.float32)

    matrix("emb.weight", shape.vocab, c)
    matrix("head.weight", shape.vocab, c)
    norm("blocks.0.ln0")
    norm("ln_out")
    for i in range(shape.layers):
        norm(f"blocks.{i}.ln1")
        norm(f"blocks.{i}.ln2")
        for part, mixes in (("att", "kvr"), ("ffn", "kr")):
            for mix in mixes:
                tensors[f"blocks.{i}.{part}.time_mix_{mix}"] = rng.random((1, 1, c), np.float32)
        for name in ("key", "value", "receptance", "output"):
            matrix(f"blocks.{i}.att.{name}.weight", c, c)
        tensors[f"blocks.{i}.att.time_decay"] = rng.uniform(-5, 2, c).astype(np.float32)
        tensors[f"blocks.{i}.att.time_first"] = rng.standard_normal(c, dtype=np.float32)
        matrix(f"blocks.{i}.ffn.key.weight", f, c)
        matrix(f"blocks.{i}.ffn.receptance.weight", c, c)
        matrix(f"blocks.{i}.ffn.value.weight", c, f)
    save_file(tensors, folder / "model.safetensors")
    config: dict[str, object] = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocab,
        "hidden_size": c,
        "num_hidden_layers": shape.layers,
        "intermediate_size": f,
    }
    if shape.model_type == "spikegpt":
        config |= {"variant": "rwkv", "spike_embedding": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
