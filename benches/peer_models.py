"""The same random model in the formats of other engines. Runs in the peers' environment.

    python peer_models.py KIND SOURCE DESTINATION

SOURCE is the safetensors file of `shapes.py`. KIND: `rwkv-f32` or `rwkv-bf16` (the authors'
`.pth`), `transformers` (a folder), `gguf-F32`, `gguf-F16`, `gguf-Q8_0` or `gguf-Q4_0` (llama.cpp
has no RWKV-4: a random RWKV-7 of 0.1 billion weights; SOURCE is ignored).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PARTS = {"att": "attention", "ffn": "feed_forward"}
MIXES = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value"}
MIXES["time_mix_r"] = "time_mix_receptance"


def hf_name(name: str) -> str:
    """transformers' name of a tensor of RWKV-4."""
    if name == "head.weight":
        return name
    if name == "emb.weight":
        return "rwkv.embeddings.weight"
    words = ["pre_ln" if word == "ln0" else word for word in name.split(".")]
    words = [MIXES.get(PARTS.get(word, word), PARTS.get(word, word)) for word in words]
    return ".".join(["rwkv", *words])


def write_pth(source: Path, destination: Path, dtype: str) -> None:
    """A file of the authors: their names, all tensors in one type."""
    import torch
    from safetensors.torch import load_file

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.save({name: x.to(kind) for name, x in load_file(source).items()}, destination)


def write_transformers(source: Path, destination: Path) -> None:
    """A folder for `RwkvForCausalLM.from_pretrained`."""
    from safetensors.torch import load_file, save_file

    tensors = {hf_name(name): x for name, x in load_file(source).items()}
    config = json.loads((source.parent / "config.json").read_text())
    config |= {
        "model_type": "rwkv",
        "architectures": ["RwkvForCausalLM"],
        "attention_hidden_size": config["hidden_size"],
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    destination.mkdir(exist_ok=True)
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})
    (destination / "config.json").write_text(json.dumps(config, indent=1))


RWKV7 = {"layers": 12, "hidden": 768, "vocab": 65536, "head": 64}
RANKS = {"w": 64, "a": 64, "v": 32, "g": 128}
"""Inner widths of RWKV-7's low-rank matrices at this size."""


def rwkv7_tensors() -> dict[str, NDArray[np.float32]]:
    """Random weights under llama.cpp's names."""
    rng = np.random.default_rng(0)
    layers, c, vocab = RWKV7["layers"], RWKV7["hidden"], RWKV7["vocab"]
    tensors: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        tensors[f"{name}.weight"] = values * np.float32(columns**-0.5)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(c, np.float32)
        tensors[f"{name}.bias"] = np.zeros(c, np.float32)

    def vector(name: str, low: float, high: float) -> None:
        tensors[f"{name}.weight"] = rng.uniform(low, high, c).astype(np.float32)

    matrix("token_embd", vocab, c)
    norm("token_embd_norm")
    norm("output_norm")
    matrix("output", vocab, c)
    for i in range(layers):
        b = f"blk.{i}."
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            norm(b + name)
        for kind, rank in RANKS.items():
            # Of the first layer llama.cpp wants matrices that it does not use.
            wide = RANKS["a"] if kind == "v" and i == 0 else rank
            matrix(f"{b}time_mix_{kind}1", wide, c)
            matrix(f"{b}time_mix_{kind}2", c, wide)
            if kind != "g":
                vector(f"{b}time_mix_{kind}0", -3, 0)
        tensors[b + "time_mix_lerp_fused.weight"] = rng.random((6, 1, 1, c), np.float32)
        for name in ("time_mix_k_k", "time_mix_k_a", "time_mix_r_k", "channel_mix_lerp_k"):
            vector(b + name, 0, 1)
        for name in ("key", "value", "receptance", "output"):
            matrix(f"{b}time_mix_{name}", c, c)
        matrix(b + "channel_mix_key", 4 * c, c)
        matrix(b + "channel_mix_value", c, 4 * c)
    return tensors


def write_gguf(destination: Path, dtype: str) -> None:
    """A file for llama.cpp; vectors and low-rank matrices stay float32, as its converter has it."""
    import gguf

    kind = gguf.GGMLQuantizationType[dtype]
    writer = gguf.GGUFWriter(destination, "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(RWKV7["hidden"])
    writer.add_block_count(RWKV7["layers"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(RWKV7["head"])
    writer.add_decay_lora_rank(RANKS["w"])
    writer.add_iclr_lora_rank(RANKS["a"])
    writer.add_value_residual_mix_lora_rank(RANKS["v"])
    writer.add_gate_lora_rank(RANKS["g"])
    writer.add_feed_forward_length(4 * RWKV7["hidden"])
    writer.add_head_count(0)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f"t{i}" for i in range(RWKV7["vocab"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * RWKV7["vocab"])
    for name, values in rwkv7_tensors().items():
        if values.ndim == 2 and min(values.shape) >= RWKV7["hidden"]:
            data = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Writes one."""
    kind, source, destination = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind.startswith("rwkv-"):
        write_pth(source, destination, kind.removeprefix("rwkv-"))
    elif kind == "transformers":
        write_transformers(source, destination)
    elif kind.startswith("gguf-"):
        write_gguf(destination, kind.removeprefix("gguf-"))
    else:
        raise SystemExit(f"{kind!r} is no kind of model")


if __name__ == "__main__":
    main()
