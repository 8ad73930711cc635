"""Random models of true shapes with a chosen share of non-zero relu² outputs.

Trained models leave a tenth to two fifths of relu²'s outputs non-zero (`density.py`), plain random
weights a half.
As zero outputs spare the engine memory, a benchmark has to fix their share. Two terms do it: every
row of `ffn.key` gets the same small constant, and `ln2.bias` points the other way, so that every
key has a negative mean. How long the bias is in each layer is found by measuring.

Models are kept in a cache folder, because writing one takes longer than measuring it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import spikelet
from spikelet.bench.machine import WEIGHT_BYTES

DENSITY = 0.30
"""Share of non-zero relu² outputs unless a row says otherwise."""
TOLERANCE = 0.02
KEY_SHIFT = 4.0
"""Sum of the constant that is added to a row of `ffn.key`."""
REVISION = 1
"""Of the recipe: models of another one in the cache are not used."""


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
    def value_weights(self) -> int:
        """Matrix elements of all `ffn.value`: those that relu²'s zeros spare."""
        return self.layers * 4 * self.hidden**2

    @property
    def head_weights(self) -> int:
        """Matrix elements of the head."""
        return self.vocab * self.hidden

    @property
    def weights_read(self) -> int:
        """Matrix elements that a dense decode step reads: all blocks and the head."""
        return self.layer_weights + self.head_weights

    def multiply_adds(self, tokens: int, lines: int = 1) -> int:
        """Of a dense pass over `tokens` with logits after `lines` of them."""
        return tokens * self.layer_weights + lines * self.head_weights


SPIKEGPT_216M = Shape("SpikeGPT-216M", "spikegpt", 18, 768, 50277)
RWKV4_169M = Shape("RWKV-4-169M", "rwkv4", 12, 768, 50277)
RWKV4_430M = Shape("RWKV-4-430M", "rwkv4", 24, 1024, 50277)
SHAPES = {shape.name: shape for shape in (RWKV4_169M, RWKV4_430M, SPIKEGPT_216M)}


def weights_read(shape: Shape, density: float, tokens: int = 1) -> float:
    """Matrix elements that a pass has to read, the head included.

    Rows of `ffn.value` whose input is zero in all tokens are not counted, taking zeros of different
    tokens for independent.
    """
    spared = (1 - density) ** tokens
    return shape.weights_read - shape.value_weights * spared


def bytes_read(shape: Shape, dtype: str, density: float, tokens: int = 1) -> float:
    """Bytes of weights that a pass reads; the head of a 4-bit model has 8 bits.

    Rows of `ffn.value` are skipped in floating point only: integers come four inputs at a time.
    """
    if dtype in ("q8", "q4"):
        density = 1.0
    blocks = weights_read(shape, density, tokens) - shape.head_weights
    head = shape.head_weights * WEIGHT_BYTES["q8" if dtype == "q4" else dtype]
    return blocks * WEIGHT_BYTES[dtype] + head


def random_tensors(shape: Shape, shift: float) -> dict[str, NDArray[np.float32]]:
    """Seeded random weights under the authors' names; rows of `ffn.key` sum up to `shift` more."""
    rng = np.random.default_rng(0)
    c, f = shape.hidden, 4 * shape.hidden
    tensors: dict[str, NDArray[np.float32]] = {}

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
        tensors[f"blocks.{i}.ffn.key.weight"] += np.float32(shift / c)
        matrix(f"blocks.{i}.ffn.receptance.weight", c, c)
        matrix(f"blocks.{i}.ffn.value.weight", c, f)
    return tensors


def config(shape: Shape) -> dict[str, object]:
    """What `config.json` of a model of this shape holds."""
    found: dict[str, object] = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": 4 * shape.hidden,
    }
    if shape.model_type == "spikegpt":
        found |= {"variant": "rwkv", "spike_embedding": False}
    return found


def write_random(shape: Shape, folder: Path, density: float | None = DENSITY) -> Path:
    """Writes `shape` with seeded random float32 weights into `folder` and returns it.

    Args:
        shape: sizes of the model.
        folder: where to; it is made.
        density: share of relu²'s outputs that are not zero, in every layer; None leaves it at what
            plain random weights have, about a half.

    Raises:
        RuntimeError: the density was not reached within `TOLERANCE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(shape, 0.0 if density is None else KEY_SHIFT)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    if density is not None:
        calibrate(shape, folder, density)
    return folder


def calibrate(shape: Shape, folder: Path, density: float) -> None:
    """Sets every `ln2.bias` so that its layer has the density, by measuring and correcting.

    Layers depend on those before them, so a few rounds are needed.
    """
    target = -NormalDist().inv_cdf(density)
    biases = np.full(shape.layers, target / KEY_SHIFT)
    found = np.full(shape.layers, np.nan)
    for _ in range(10):
        for i, bias in enumerate(biases):
            overwrite(
                folder / "model.safetensors",
                f"blocks.{i}.ln2.bias",
                np.full(shape.hidden, -bias, np.float32),
            )
        found = densities(folder, shape)
        if np.abs(found - density).max() < TOLERANCE / 4:
            return
        reached = [-NormalDist().inv_cdf(min(max(d, 1e-3), 1 - 1e-3)) for d in found.tolist()]
        # A step in units of the keys' spread, which is near 1: it may not overshoot far.
        biases += np.clip((target - np.array(reached)) / KEY_SHIFT, -0.1, 0.1)
    if np.abs(found - density).max() > TOLERANCE:
        raise RuntimeError(f"{folder}: relu² density {density:.2f} needed, {found} found")


def densities(folder: Path, shape: Shape, tokens: int = 192) -> NDArray[np.float64]:
    """Share of non-zero relu² outputs in every layer on random tokens, `[layers]`."""
    ids = np.random.default_rng(1).integers(0, shape.vocab, tokens).tolist()
    trace = spikelet.load(folder, dtype="f32").trace(ids)
    return np.asarray(trace.relu2_density, np.float64)[:, 1:].mean(axis=1)


def overwrite(file: Path, name: str, values: NDArray[np.float32]) -> None:
    """Replaces one float32 tensor of a safetensors file in place."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[name]
        begin, end = entry["data_offsets"]
        data = values.astype("<f4").tobytes()
        if entry["dtype"] != "F32" or end - begin != len(data):
            raise ValueError(f"{file}: {name} is {entry}, {values.shape} float32 given")
        stream.seek(8 + length + begin)
        stream.write(data)


def default_cache() -> Path:
    """Where models and environments of benchmarks are kept: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spikelet-benches"


def model_folder(shape: Shape, cache: Path, density: float | None = DENSITY) -> Path:
    """A random model from the cache, made there if it is missing; prints the density it has."""
    kind = "dense" if density is None else f"{density:.0%}"
    folder = cache / f"{shape.name}-{kind}-{REVISION}"
    if not (folder / "config.json").exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        write_random(shape, unfinished, density)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
        found = densities(folder, shape)
        print(
            f"{shape.name}: made; relu² density {found.min():.3f} to {found.max():.3f} by layer",
            flush=True,
        )
    return folder
