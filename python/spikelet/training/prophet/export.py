"""From a trained prophet to the folder that the engine loads, and back.

A prophet fits one model: its hidden states, its embedding. ``fingerprint`` says which, from the
model's file alone, and the engine refuses a prophet whose model is another one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import spikelet
from spikelet.errors import FormatError, OptionError
from spikelet.training.config import RWKV4Config, SpikeGPTConfig
from spikelet.training.export import DTYPES
from spikelet.training.files import write_atomically, write_text
from spikelet.training.models.rwkv4 import RWKV4
from spikelet.training.models.spikegpt import SpikeGPT
from spikelet.training.prophet.config import ProphetConfig
from spikelet.training.prophet.module import Prophet

if TYPE_CHECKING:
    from spikelet.training.models.language_model import LanguageModel

FOLDER = "prophet"
"""Where a model folder keeps its prophet."""
_SAMPLE = 4096
"""Bytes of each tensor that go into a fingerprint."""


def fingerprint(weights: Path) -> str:
    """Return the fingerprint of a safetensors file, as the engine computes it.

    SHA-256 over all tensors by name: name, type, shape and the first 4096 bytes of each.
    """
    digest = hashlib.sha256()
    try:
        with weights.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            # One that is longer than the file is cut, and then no JSON.
            header = json.loads(file.read(min(size, weights.stat().st_size)))
            header.pop("__metadata__", None)
            for name in sorted(header):
                entry = header[name]
                begin, end = entry["data_offsets"]
                shape = ",".join(map(str, entry["shape"]))
                digest.update(b"\0".join(part.encode() for part in (name, entry["dtype"], shape)))
                digest.update(b"\0")
                file.seek(8 + size + begin)
                digest.update(file.read(min(_SAMPLE, end - begin)))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{weights}: not a safetensors file: {error}") from error
    return digest.hexdigest()


def load_target(folder: Path) -> LanguageModel:
    """Return the torch module of a model folder, in evaluation mode and not to be trained."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: no model's configuration: {error}") from error
    kind = config.get("model_type")
    model: LanguageModel
    if kind == "spikegpt":
        model = SpikeGPT(SpikeGPTConfig.from_model_config(config))
    elif kind in ("rwkv4", "rwkv"):
        model = RWKV4(RWKV4Config.from_model_config(config))
    else:
        raise FormatError(f"{path}: model_type is {kind!r}; prophets are for spikegpt and rwkv4")
    weights = (
        _read_quantized(folder) if "quantization" in config else _read_weights(_weights_of(folder))
    )
    try:
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise FormatError(f"{folder / 'model.safetensors'}: {error}") from error
    return model.eval().requires_grad_(False)


def _weights_of(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FormatError(
            f"{folder}: no model.safetensors; 'spikelet convert' makes such a folder of a file in "
            "another format"
        )
    return path


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path}: {error}") from error


def _read_quantized(folder: Path) -> dict[str, torch.Tensor]:
    """What integer weights stand for, as the engine reads them."""
    with TemporaryDirectory() as made:
        spikelet.convert(folder, made, dtype="f32")
        return _read_weights(Path(made) / "model.safetensors")


def _check_target(prophet: Prophet, folder: Path) -> None:
    """Refuse a folder whose model is not the one that the prophet has learned from."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = prophet.target_config
    for name, value in (("hidden_size", wanted.n_embd), ("vocab_size", wanted.vocab_size)):
        if config.get(name) != value:
            raise OptionError(
                f"the prophet is for a model of {name} {value}, but {folder} has {config.get(name)}"
            )
    known, found = prophet.model_fingerprint, fingerprint(_weights_of(folder))
    if known is not None and known != found:
        raise OptionError(f"the prophet is for model {known}, but {folder} holds model {found}")


def export_prophet(prophet: Prophet, model_folder: Path, dtype: str = "f32") -> Path:
    """Write a prophet into the folder ``prophet`` of its model; returns that folder.

    Each file appears whole or not at all, the configuration last.

    Args:
        prophet: trained.
        model_folder: of the model that it was trained for; another one is refused, which its sizes
            tell, and its fingerprint where ``prophet.model_fingerprint`` is set.
        dtype: of the weights: ``"f32"``, ``"bf16"`` or ``"f16"``.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; known are {sorted(DTYPES)}")
    target = _weights_of(model_folder)
    _check_target(prophet, model_folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in prophet.state_dict().items():
        stored = value.detach().cpu()
        if stored.is_floating_point():
            stored = stored.to(DTYPES[dtype])
            if not bool(torch.isfinite(stored).all()):
                raise OptionError(f"tensor {name} has values that {dtype} cannot hold, or NaN")
        tensors[name] = stored.contiguous()
    folder = model_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "model.safetensors",
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
    )
    config = prophet_config(prophet) | {
        "model_fingerprint": fingerprint(target),
        "model_sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder


def prophet_config(prophet: Prophet) -> dict[str, object]:
    """Return what ``config.json`` says of a prophet, but for the model it belongs to."""
    config, target = prophet.config, prophet.target_config
    return {
        "model_type": "prophet",
        "block": config.block,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "intermediate_size": config.n_ffn,
        "target_hidden_size": target.n_embd,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": config.draft_vocab,
        "num_leading": config.num_leading,
        "layer_norm_epsilon": 1e-5,
        "tied_head": config.tied_head,
        "spike_embedding": bool(getattr(target, "spike_embedding", False)),
    }


def load_prophet(model_folder: Path, target: LanguageModel) -> Prophet:
    """Return the prophet in a model folder, in evaluation mode.

    Args:
        model_folder: holds the model, and the prophet in ``prophet``.
        target: that model, see ``load_target``.
    """
    path = model_folder / FOLDER / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: no prophet's configuration: {error}") from error
    found, own = config.get("model_fingerprint"), fingerprint(_weights_of(model_folder))
    if found != own:
        raise FormatError(f"{path}: the prophet is for model {found}, but this is model {own}")
    shape = ProphetConfig(
        block=config["block"],
        n_layer=config["num_hidden_layers"],
        n_embd=config["hidden_size"],
        n_ffn=config["intermediate_size"],
        draft_vocab=config["draft_vocab_size"],
        tied_head=config["tied_head"],
        num_leading=config["num_leading"],
    )
    weights = _read_weights(model_folder / FOLDER / "model.safetensors")
    prophet = Prophet(shape, target.config, weights.pop("draft_ids"))
    try:
        prophet.load_state_dict(
            {name: value.float() for name, value in weights.items()}
            | {"draft_ids": prophet.draft_ids}
        )
    except RuntimeError as error:
        raise FormatError(f"{path.parent / 'model.safetensors'}: {error}") from error
    prophet.model_fingerprint = own
    return prophet.eval()
