"""One run as the page shows it: found by name or path, read from its folder, made into JSON."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikelet._models import local_models
from spikelet.errors import NotFoundError, SpikeletError
from spikelet.report.configs import read_configs, read_object
from spikelet.report.logs import Table, read_lines, read_table, rounded, thin, training_table
from spikelet.training import runs

VALIDATION = ("val_loss", "val_bits_per_byte")
_KNOWN = (
    "step",
    "tokens",
    "seconds",
    "train_loss",
    "bits_per_byte",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "firing_rate",
    "relu2_density",
    "perplexity",
    *VALIDATION,
)
_BINS = 120
_SITE = re.compile(r"(?:.*?\.)?(\d+)\.(.+)")
_SAMPLES = 200
_SAMPLE_LETTERS = 4000
# A failed process writes its last row first, then the exception.
_LATE = 5.0


def find_folder(run: str) -> Path:
    """The folder of a run: an existing path, the name of a run, or of a model that has a log.

    Raises:
        NotFoundError: there is none; the message names those there are.
    """
    path = Path(run)
    if path.is_dir():
        is_inner = path.resolve().name == "training" and (path / "train_log.csv").is_file()
        return path.resolve().parent if is_inner else path
    if "/" in run or os.sep in run:
        raise NotFoundError(f"run {run}: there is no such folder")
    known = local_models()
    return known[run] if run == "bundled" and run in known else runs.find_run(run)


@dataclass
class RunFiles:
    """The folder of a run, and what is read from it before anything is worked out."""

    name: str
    folder: Path
    place: Path
    """Where log, configurations and samples lie."""
    log: Table
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_files(run: str, *, may_be_empty: bool = False) -> RunFiles:
    """Reads log and configurations of a run.

    Args:
        run: its name or path.
        may_be_empty: take a folder in which nothing is yet.

    Raises:
        NotFoundError: no such run, or a folder in which nothing is that a report could show.
    """
    folder = find_folder(run)
    place = runs.training_folder(folder)
    if not (place / "train_log.csv").is_file() and (folder / "train_log.csv").is_file():
        place = folder
    log = training_table(place / "train_log.csv")
    configs = read_configs(place)
    is_empty = not (place / "train_log.csv").exists() and not any(configs.values())
    if is_empty and not may_be_empty:
        raise NotFoundError(
            f"run {run}: nothing to report: {place / 'train_log.csv'} does not exist, "
            "nor a configuration beside it"
        )
    return RunFiles(folder.resolve().name, folder, place, log, configs)


def gather(files: RunFiles) -> dict[str, Any]:
    """All that the page shows of a run but its spike raster and its configurations."""
    log = files.log
    steps = log.columns.get("step")
    if steps is None and len(log):
        log.columns["step"] = [float(row + 1) for row in range(len(log))]
        log.notes.append("the log has no column 'step': rows are counted instead")
    columns = thin(log.columns, whole=VALIDATION)
    state, exception = state_of(files)
    notes = list(log.notes)
    if not len(log):
        notes.append("the log holds no rows yet")
    return {
        "name": files.name,
        "folder": str(files.folder),
        "state": state,
        "exception": exception,
        "summary": summary(files),
        "is_language": is_language(files),
        "columns": {name: rounded(column) for name, column in columns.items()},
        "series": series(files),
        "layers": layers(files),
        "samples": samples(files.place / "samples.jsonl"),
        "notes": notes,
        "raster": None,
        "raster_note": None,
    }


def state_of(files: RunFiles) -> tuple[str, str | None]:
    """Tells `running`, `failed`, `finished` or `stopped`, and what the exception said."""
    run = runs.read_run(files.folder)
    failure = files.place / "exception.log"
    exception = None
    # One of an earlier attempt lies there still when a run was resumed: then the log is newer.
    if _changed(failure) >= max(
        _changed(files.place / "train_log.csv") - _LATE, _changed(files.place / "pid")
    ):
        exception = _read_text(failure)
    if exception is not None:
        return "failed", exception
    if run.running:
        return "running", None
    exported = not run.checkpoints and (files.folder / "model.safetensors").is_file()
    return ("finished" if run.finished or exported or _is_at_end(files) else "stopped"), None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "(no message)"
    except OSError:
        return None


def _is_at_end(files: RunFiles) -> bool:
    training = files.configs.get("Training", {})
    for column, key in (("tokens", "max_tokens"), ("step", "max_step")):
        length = training.get(key)
        done = files.log.present(column)
        if isinstance(length, int) and length > 0 and done:
            return done[-1] >= length
    return False


def is_language(files: RunFiles) -> bool:
    """Whether the loss is one of tokens, so that perplexity and a text's spikes make sense."""
    told = {"tokens", "perplexity", "bits_per_byte", "val_bits_per_byte"} & files.log.columns.keys()
    return bool(told) or "vocab_size" in files.configs.get("Model", {})


def summary(files: RunFiles) -> dict[str, Any]:
    """The figures of the head: size, best validation, length, time, speed, firing rate."""
    log, training = files.log, files.configs.get("Training", {})
    facts: dict[str, Any] = {
        "model": files.configs.get("Run", {}).get("model_class"),
        "shape": _shape(files.configs.get("Model", {})),
        **_model_facts(files.folder),
        "max_step": training.get("max_step") if not training.get("max_tokens") else None,
        "max_tokens": training.get("max_tokens") or None,
        "changed": _changed(files.place / "train_log.csv") or None,
    }
    for name in ("step", "tokens", "seconds"):
        facts[name] = next(iter(log.present(name)[-1:]), None)
    losses = log.present("train_loss")
    facts["train_loss"] = statistics.fmean(losses[-max(1, len(losses) // 50) :]) if losses else None
    speeds = log.present("tokens_per_second")
    facts["tokens_per_second"] = statistics.median(speeds) if speeds else None
    for name in ("firing_rate", "relu2_density"):
        facts[name] = next(iter(log.present(name)[-1:]), None)
    facts["best"] = _best(log)
    return facts


def _best(log: Table) -> dict[str, Any] | None:
    """The row with the least validation loss, or bits per byte where only those are there."""
    for name in VALIDATION:
        known = [(v, row) for row, v in enumerate(log.columns.get(name, ())) if v is not None]
        if known:
            row = min(known)[1]
            return {
                key: log.columns[key][row] for key in (*VALIDATION, "step") if key in log.columns
            }
    return None


def _shape(model: Mapping[str, Any]) -> str | None:
    layers = model.get("n_layer", model.get("num_hidden_layers"))
    width = model.get("n_embd", model.get("hidden_size"))
    return f"{layers} layers × {width}" if layers and width else None  # noqa: RUF001


def _model_facts(folder: Path) -> dict[str, Any]:
    """Parameters of the exported model; nothing before there is one."""
    if not (folder / "model.safetensors").is_file():
        return {}
    import spikelet

    try:
        facts = spikelet.inspect(folder)
    except (SpikeletError, OSError):
        return {}
    return {"parameters": facts["num_parameters"], "type": facts["model_type"]}


def series(files: RunFiles) -> list[dict[str, Any]]:
    """Charts beside the usual ones: those that the trainer's `_visual_series` names.

    Where it names none, every column that this page does not know gets a chart over the steps.
    """
    columns = files.log.columns
    usual = {name for name in _KNOWN if name in columns}
    charts = []
    drawn = set(usual)
    named = read_object(files.place / "external_config.json").get("series")
    for title, axes in (named if isinstance(named, dict) else {}).items():
        if not isinstance(axes, list) or len(axes) < 2 or not all(a in columns for a in axes):
            continue
        if axes[0] == "step" and len(axes) == 2 and axes[1] in usual:
            continue
        drawn.update(axes[1:])
        charts.append({"title": str(title), "x": axes[0], "y": axes[1:]})
    charts.extend(
        {"title": name, "x": "step", "y": [name]} for name in columns if name not in drawn
    )
    return charts


def layers(files: RunFiles) -> dict[str, Any] | None:
    """Firing rates and densities by layer over time, averaged within at most 120 stretches."""
    table = read_table(files.place / "layers.csv")
    steps = table.columns.pop("step", None)
    if steps is None or not table.columns:
        return None
    known = [row for row, step in enumerate(steps) if step is not None]
    known.sort(key=lambda row: steps[row] or 0.0)
    stretches = [part.tolist() for part in np.array_split(known, min(_BINS, len(known)))]
    middle = [_mean(steps, part) for part in stretches]
    kinds: dict[str, list[tuple[int, list[float | int | None]]]] = {}
    for name, column in table.columns.items():
        site = _SITE.fullmatch(name)
        kind = site[2] if site else "other"
        rows = kinds.setdefault(kind, [])
        layer = int(site[1]) if site else len(rows)
        rows.append((layer, rounded([_mean(column, part) for part in stretches], 4)))
    return {
        "step": rounded(middle),
        **{name: _at_steps(files.log, name, middle) for name in ("tokens", "seconds")},
        "kinds": [
            {
                "kind": kind,
                "layers": [layer for layer, _ in sorted(rows)],
                "values": [values for _, values in sorted(rows, key=lambda row: row[0])],
            }
            for kind, rows in kinds.items()
        ],
    }


def _mean(column: Sequence[float | None], rows: Sequence[int]) -> float | None:
    known = [value for row in rows if (value := column[row]) is not None]
    return math.fsum(known) / len(known) if known else None


def _at_steps(
    log: Table, name: str, steps: Sequence[float | None]
) -> list[float | int | None] | None:
    """What a column of the log was at these steps; None if it has no such column."""
    pairs = [
        (step, value)
        for step, value in zip(log.columns.get("step", ()), log.columns.get(name, ()), strict=False)
        if step is not None and value is not None
    ]
    if not pairs:
        return None
    at = np.interp(
        np.array(steps, float), [step for step, _ in pairs], [value for _, value in pairs]
    )
    return rounded(at.tolist())


def samples(path: Path) -> list[dict[str, Any]]:
    """The samples of a run; of very many an even selection with the first and the last."""
    found = read_lines(path)
    if len(found) > _SAMPLES:
        found = [found[at] for at in np.linspace(0, len(found) - 1, _SAMPLES).round().astype(int)]
    return [_sample(each) for each in found]


def _sample(given: Mapping[str, Any]) -> dict[str, Any]:
    step, prompt, text = given.get("step"), given.get("prompt"), given.get("text")
    prompt = prompt if isinstance(prompt, str) else ""
    text = text if isinstance(text, str) else ""
    return {
        "step": step if isinstance(step, int) else None,
        "prompt": prompt[:_SAMPLE_LETTERS],
        # Trainers differ in whether the text repeats its prompt.
        "text": text.removeprefix(prompt)[:_SAMPLE_LETTERS],
    }
