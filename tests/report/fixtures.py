"""Run folders as training leaves them, made up in milliseconds."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "golden"
LM_COLUMNS = (
    "step",
    "tokens",
    "seconds",
    "train_loss",
    "val_loss",
    "perplexity",
    "bits_per_byte",
    "val_bits_per_byte",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "firing_rate",
    "relu2_density",
)
SERIES = {"train_loss": ["step", "train_loss"], "val_loss": ["step", "val_loss"]}


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def lm_rows(steps: int, *, level: float = 1.2, seed: int = 0) -> list[dict[str, Any]]:
    """A loss that falls, a learning rate that warms up: the log of a language model."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = step / steps
        loss = level + (5.5 - level) * math.exp(-9 * share**0.6) + draw.gauss(0, 0.06)
        row: dict[str, Any] = dict.fromkeys(LM_COLUMNS, "")
        row |= {
            "step": step,
            "tokens": step * 2048,
            "seconds": round(step * 0.31, 2),
            "train_loss": round(loss, 5),
            "perplexity": round(math.exp(loss), 3),
            "bits_per_byte": round(loss / math.log(2), 5),
            "learning_rate": 4e-4
            * min(1, share / 0.05)
            * (0.55 + 0.45 * math.cos(math.pi * share)),
            "grad_norm": round(0.6 + draw.expovariate(3) + (4 if step == steps // 2 else 0), 4),
            "tokens_per_second": round(6600 + draw.gauss(0, 160), 1),
            "firing_rate": round(0.28 - 0.13 * share + draw.gauss(0, 0.003), 5),
            "relu2_density": round(0.48 - 0.2 * share + draw.gauss(0, 0.004), 5),
        }
        if step % max(1, steps // 20) == 0:
            validation = level + 0.07 + (5.5 - level) * math.exp(-9 * share**0.6)
            row |= {
                "val_loss": round(validation, 5),
                "val_bits_per_byte": round(validation / math.log(2), 5),
            }
        rows.append(row)
    return rows


def layer_rows(steps: int, layers: int = 6, *, every: int = 5) -> list[dict[str, Any]]:
    rows = []
    for step in range(every, steps + 1, every):
        row: dict[str, Any] = {"step": step}
        for layer in range(layers):
            share = step / steps
            row[f"blocks.{layer}.lif1"] = round(0.08 + 0.04 * layer - 0.03 * share * layer, 5)
            row[f"blocks.{layer}.lif2"] = round(0.3 - 0.03 * layer + 0.1 * share, 5)
            row[f"blocks.{layer}.relu2"] = round(0.5 - 0.05 * layer * share, 5)
        rows.append(row)
    return rows


def make_run(
    folder: Path,
    *,
    steps: int = 200,
    level: float = 1.2,
    seed: int = 0,
    model: bool = True,
    config: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run of a language model, with an exported model unless `model` is false."""
    place = folder / "training"
    place.mkdir(parents=True)
    if model:
        shutil.copy(GOLDEN / "spikegpt-tiny" / "model.safetensors", folder)
        keys = json.loads((GOLDEN / "spikegpt-tiny" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(keys | {"tokenizer_class": "bytes"}))
    shape = {"vocab_size": 256, "ctx_len": 256, "model_type": "RWKV", "n_layer": 6, "n_embd": 192}
    settings = {
        "name": folder.name,
        "device": "cpu",
        "batch_size": 8,
        "max_step": steps,
        "learning_rate": 4e-4,
        "optimizer": "adamw",
        "schedule": "cosine",
        "seed": seed,
    }
    files = {
        "config.json": {**shape, **(config or {})},
        "trainer_config.json": {**settings, **(trainer or {})},
        "external_config.json": {"model_class": "SpikeGPT", "series": SERIES, "fork": None},
    }
    for name, value in files.items():
        (place / name).write_text(json.dumps(value))
    write_csv(place / "train_log.csv", LM_COLUMNS, lm_rows(steps, level=level, seed=seed))
    rows = layer_rows(steps)
    write_csv(place / "layers.csv", list(rows[0]), rows)
    with (place / "samples.jsonl").open("w") as file:
        for part in range(1, 6):
            sample = {
                "step": steps * part // 5,
                "tokens": 2048 * steps * part // 5,
                "prompt": "Once upon a time",
                "text": ", there was a little fox who counted the stars." * part,
            }
            file.write(json.dumps(sample) + "\n")
    (place / "complete.pth").write_bytes(b"")
    return folder
