"""From a trained module to the model folder that the engine loads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from spikelet.errors import OptionError
from spikelet.training.data import as_tokenizer
from spikelet.training.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from spikelet.training.models.spikegpt import SpikeGPT

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def export_model(
    model: SpikeGPT,
    folder: Path,
    tokenizer: object = None,
    dtype: str = "f32",
    generation: dict[str, object] | None = None,
) -> None:
    """Write config, weights, tokenizer and ``generation_config.json``.

    Each file appears whole or not at all; other files of the folder stay.

    Args:
        model: its tensors are stored under their own names, the authors'.
        folder: made when missing.
        tokenizer: what ``as_tokenizer`` takes; None, and one that cannot be written, leave the
            folder without one.
        dtype: ``"f32"``, ``"bf16"`` or ``"f16"``.
        generation: sampling defaults; the tokenizer's end-of-text token is added to them.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; known are {sorted(DTYPES)}")
    weights = {
        name: value.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, value in model.state_dict().items()
    }
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise OptionError(f"tensor {name} has values that {dtype} cannot hold, or NaN")
    config, generation = model.config.to_model_config(), dict(generation or {})
    kind = None if tokenizer is None else as_tokenizer(tokenizer)
    if kind is not None:
        # Every training document stands behind an end-of-text token: it also begins a text.
        config |= {"bos_token_id": kind.eos_id, "eos_token_id": kind.eos_id}
        config |= {"tokenizer_class": kind.tokenizer_class} if kind.tokenizer_class else {}
        generation |= {"eos_token_id": kind.eos_id}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "model.safetensors",
        lambda path: save_file(weights, path, metadata={"format": "pt"}),
    )
    if kind is not None and kind.can_save:
        kind.save(folder)
    if generation:
        text = json.dumps(generation, indent=2) + "\n"
        write_atomically(folder / "generation_config.json", lambda path: path.write_text(text))
    # Last: a folder with a config is a model.
    text_config = json.dumps(config, indent=2) + "\n"
    write_atomically(folder / "config.json", lambda path: path.write_text(text_config))
