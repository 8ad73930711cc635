"""Random models of published shapes, written in seconds: made on the device, streamed to a file.

They are those of `shapes.py` in form, not in bits, and bfloat16: a model of 7 billion weights is
14 GB, which belongs in memory (`/dev/shm`). relu² leaves about 30 % of its outputs non-zero; how
many exactly is not set by measuring as it is there.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import torch
from shapes import DENSITY, KEY_SHIFT, RWKV4_169M, SPIKEGPT_216M, Shape, config
from torch import Tensor

RWKV4_1B5 = Shape("RWKV-4-1.5B", "rwkv4", 24, 2048, 50277)
RWKV4_7B = Shape("RWKV-4-7B", "rwkv4", 32, 4096, 50277)
PUBLISHED = (SPIKEGPT_216M, RWKV4_169M, RWKV4_1B5, RWKV4_7B)
TINY = (Shape("tiny-spikegpt", "spikegpt", 2, 72, 300), Shape("tiny-rwkv4", "rwkv4", 2, 64, 128))
"""For rehearsals."""
MIXED = math.sqrt(2 / 3)
"""Spread of a mix of two tokens in random shares, where that of one is 1."""
CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def plan(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the tensors' names and sizes under the authors' names."""
    c, f = shape.hidden, 4 * shape.hidden
    sizes: dict[str, tuple[int, ...]] = {"emb.weight": (shape.vocab, c)}
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(shape.layers):
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2"]
        for part, mixes in (("att", "kvr"), ("ffn", "kr")):
            sizes |= {f"blocks.{i}.{part}.time_mix_{mix}": (1, 1, c) for mix in mixes}
        for name in ("key", "value", "receptance", "output"):
            sizes[f"blocks.{i}.att.{name}.weight"] = (c, c)
        sizes |= {f"blocks.{i}.att.time_{name}": (c,) for name in ("decay", "first")}
        sizes[f"blocks.{i}.ffn.key.weight"] = (f, c)
        sizes[f"blocks.{i}.ffn.receptance.weight"] = (c, c)
        sizes[f"blocks.{i}.ffn.value.weight"] = (c, f)
    sizes |= {f"{norm}.{kind}": (c,) for norm in norms for kind in ("weight", "bias")}
    sizes["head.weight"] = (shape.vocab, c)
    return sizes


def make(name: str, size: tuple[int, ...], shape: Shape, generator: torch.Generator) -> Tensor:
    """Return one tensor: matrices bfloat16, all else float32."""
    device = generator.device
    if len(size) == 2:
        values = torch.randn(size, generator=generator, device=device, dtype=torch.float32)
        values *= size[1] ** -0.5
        if name.endswith("ffn.key.weight"):
            values += KEY_SHIFT / shape.hidden
        return values.to(torch.bfloat16)
    if "time_mix" in name:
        return torch.rand(size, generator=generator, device=device)
    if name.endswith("time_decay"):
        return torch.rand(size, generator=generator, device=device) * 7 - 5
    if name.endswith("time_first"):
        return torch.randn(size, generator=generator, device=device)
    if name.endswith("ln2.bias"):
        bias = NormalDist().inv_cdf(DENSITY) * MIXED / KEY_SHIFT
        return torch.full(size, bias, device=device)
    fill = torch.ones if name.endswith(".weight") else torch.zeros
    return fill(size, device=device)


def pieces(shape: Shape, device: str) -> Iterator[tuple[str, Tensor]]:
    """Make all tensors, one at a time."""
    generator = torch.Generator(device).manual_seed(1)
    for name, size in plan(shape).items():
        yield name, make(name, size, shape, generator)


def header(shape: Shape) -> bytes:
    """Return the head of the safetensors file."""
    entries: dict[str, object] = {}
    at = 0
    for name, size in plan(shape).items():
        kind = torch.bfloat16 if len(size) == 2 else torch.float32
        end = at + math.prod(size) * kind.itemsize
        entries[name] = {"dtype": CODES[kind], "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def folder(shape: Shape, work: Path, device: str) -> Path:
    """Return a random model's folder, made if it is not there; all others but small ones go."""
    made = work / shape.name
    if (made / "config.json").exists():
        return made
    for other in work.glob("*/model.safetensors"):
        if other.stat().st_size > 1e9:
            shutil.rmtree(other.parent)
    made.mkdir(parents=True, exist_ok=True)
    with (made / "model.safetensors").open("wb") as stream:
        stream.write(header(shape))
        for _, tensor in pieces(shape, device):
            stream.write(memoryview(tensor.reshape(-1).view(torch.uint8).cpu().numpy()))
    (made / "config.json").write_text(json.dumps(config(shape), indent=1))
    return made


def state_bytes(shape: Shape) -> int:
    """Return the bytes of one sequence's state; it is read and written by every token."""
    fields = 7 if shape.model_type == "spikegpt" else 5
    return 4 * fields * shape.layers * shape.hidden
