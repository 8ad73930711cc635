"""Runs on disk, as a trainer leaves them or as DarwinKit does, without training."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import spikelet
from spikelet.training import SpikeGPT, SpikeGPTConfig
from spikelet.training.data import as_tokenizer


def tiny_model(vocab_size: int = 300, seed: int = 1, **options: Any) -> SpikeGPT:
    """A model whose output hangs on every part of it, unlike that of a fresh one."""
    torch.manual_seed(seed)
    shape = {"n_layer": 2, "n_embd": 16, "spike_embedding": False, "dropout": 0.0}
    model = SpikeGPT(SpikeGPTConfig(vocab_size, 32, "RWKV", **(shape | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def save_run(
    name: str,
    model: Any,
    tokenizer: object = None,
    *,
    checkpoint: str = "complete",
    folder: Path | None = None,
    model_class: str | None = None,
    fork: str | None = None,
    time: int = 1_700_000_000,
) -> Path:
    """Write one checkpoint of a run, and what lies beside it."""
    folder = folder or spikelet.home() / "runs" / name / "training"
    folder.mkdir(parents=True, exist_ok=True)
    model_class = model_class or type(model).__name__
    content = {"model_class": model_class, "state_dict": model.state_dict(), "current_step": 7}
    path = folder / f"{checkpoint}.pth"
    torch.save(content, path)
    os.utime(path, (time, time))
    (folder / "config.json").write_text(json.dumps(asdict(model.config)))
    (folder / "trainer_config.json").write_text('{"device": "cuda"}')
    external = {"model_class": model_class, "series": {}, "fork": fork}
    (folder / "external_config.json").write_text(json.dumps(external))
    if tokenizer is not None:
        as_tokenizer(tokenizer).save(folder / "tokenizer")
    return folder
