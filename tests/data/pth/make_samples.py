"""Writes the .pth samples of this folder with PyTorch.

A tiny RWKV-4 model in every layout and type that the reader promises. Each sample must read as the
tensors in `expected_<type>.safetensors`. The samples are checked in, so tests need no torch.
Run: python make_samples.py
"""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
VOCAB, WIDTH, INNER = 8, 4, 16


def tensors() -> OrderedDict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (VOCAB, WIDTH)}
    for name in ("ln0", "ln1", "ln2"):
        shapes |= {f"blocks.0.{name}.weight": (WIDTH,), f"blocks.0.{name}.bias": (WIDTH,)}
    shapes |= {f"blocks.0.att.{name}": (WIDTH,) for name in ("time_decay", "time_first")}
    shapes |= {f"blocks.0.att.time_mix_{name}": (1, 1, WIDTH) for name in "kvr"}
    shapes |= {
        f"blocks.0.att.{name}.weight": (WIDTH, WIDTH)
        for name in ("key", "value", "receptance", "output")
    }
    shapes |= {f"blocks.0.ffn.time_mix_{name}": (1, 1, WIDTH) for name in "kr"}
    shapes |= {
        "blocks.0.ffn.key.weight": (INNER, WIDTH),
        "blocks.0.ffn.receptance.weight": (WIDTH, WIDTH),
        "blocks.0.ffn.value.weight": (WIDTH, INNER),
        "ln_out.weight": (WIDTH,),
        "ln_out.bias": (WIDTH,),
        "head.weight": (VOCAB, WIDTH),
    }
    return OrderedDict(
        (name, torch.randn(shape, generator=random)) for name, shape in shapes.items()
    )


def main() -> None:
    model = tensors()
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        cast = OrderedDict((key, value.to(dtype)) for key, value in model.items())
        save_file(dict(cast), HERE / f"expected_{name}.safetensors")
        torch.save(cast, HERE / f"zip_{name}.pth")
        torch.save(cast, HERE / f"legacy_{name}.pth", _use_new_zipfile_serialization=False)

    # As a training program leaves it: wrapped, parameters, notes beside them, matrices transposed
    # or cut out of a larger storage.
    odd = OrderedDict((f"module.{key}", torch.nn.Parameter(value)) for key, value in model.items())
    for key in ("module.blocks.0.ffn.key.weight", "module.head.weight"):
        odd[key] = torch.nn.Parameter(odd[key].detach().t().contiguous().t())
    fused = torch.cat([model["blocks.0.att.key.weight"], model["blocks.0.att.value.weight"]])
    odd["module.blocks.0.att.key.weight"] = fused[:WIDTH]
    odd["module.blocks.0.att.value.weight"] = fused[WIDTH:]
    odd._metadata = OrderedDict({"": {"version": 1}})
    checkpoint = {
        "epoch": 3,
        "lr": 0.1,
        "note": "é",
        "rng": torch.zeros(4, dtype=torch.uint8),
        "raw": b"\0\1",
        "big": 1 << 40,
        "state_dict": odd,
    }
    torch.save(checkpoint, HERE / "zip_nested.pth")
    torch.save(checkpoint, HERE / "legacy_nested.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
