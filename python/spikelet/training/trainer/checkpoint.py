"""Checkpoints: one file each, whole or absent, holding nothing but tensors, numbers and strings.

    model_class             name of the module's class
    state_dict              the weights
    current_step            optimiser steps done
    optimizer_state_dict    moments and options by parameter name
    progress, rng, model_config, trainer_config, tokenizer_hash      of language models

The first four are DarwinKit's, whose own files (moments by index) can be read too. Files are read
with torch's restricted loader only: nothing in them is executed.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spikelet.training.errors import TrainingError, cannot_write
from spikelet.training.trainer.optim import SeveralOptimizers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from spikelet.training.trainer.optim import Optimizer


# Files


class _Watched(io.BufferedIOBase):
    """Passes bytes on to a file and keeps the error of the system, which torch hides."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.error = file, OSError()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, make sure it is on the disk, then rename it.

    Raises:
        TrainingError: it cannot be written; what was at ``path`` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            watched = _Watched(file)
            try:
                torch.save(content, watched)  # type: ignore[arg-type]
            except RuntimeError as error:  # torch's zip writer, whatever the cause
                raise (watched.error if watched.error.errno else error) from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def link_checkpoint(existing: Path, path: Path) -> None:
    """Give a checkpoint a second name, at no cost where the file system can."""
    try:
        os.link(existing, path)
    except OSError:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.copyfile(existing, temporary)
        temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, on systems where a folder can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_remains(folder: Path) -> None:
    """Delete what a process killed in the middle of a checkpoint has left."""
    for path in folder.glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such checkpoint") from error
    except Exception as error:  # a broken file makes the reader stumble in many ways
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"{path}: not a whole checkpoint: {reason}") from error
    missing = {"state_dict", "current_step"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise TrainingError(f"{path}: not a checkpoint of a run: it lacks {sorted(missing)}")
    return dict(content)


# Optimisers, by the names of the parameters


def _parts(optimizer: Optimizer) -> Sequence[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, SeveralOptimizers) else (optimizer,)


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return moments and options with parameters named, so that their order does not matter."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for part in _parts(optimizer):
        state |= {names[p]: dict(values) for p, values in part.state.items()}
        for group in part.param_groups:
            named = {"params": [names[parameter] for parameter in group["params"]]}
            groups.append({key: value for key, value in group.items() if key != "params"} | named)
    return {"state": state, "param_groups": groups}


def restore_optimizer(optimizer: Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Take over the moments; the options stay those of the optimiser."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = saved["state"]
    by_index = any(isinstance(key, int) for key in state)
    for part in _parts(optimizer):
        own = part.state_dict()
        if by_index:
            own["state"] = state
        else:
            indices = [index for group in own["param_groups"] for index in group["params"]]
            parameters = [p for group in part.param_groups for p in group["params"]]
            own["state"] = {
                index: dict(state[names[parameter]])
                for index, parameter in zip(indices, parameters, strict=True)
                if names[parameter] in state
            }
        part.load_state_dict(own)


# Random states


def random_state() -> dict[str, Any]:
    """Return the state of every generator of this process, as tensors and numbers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global one
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "python": [version, list(words), gauss],
    }


def restore_random_state(saved: dict[str, Any]) -> None:
    """Set every generator to a state that ``random_state`` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    own = saved["numpy"]
    keys = own["keys"].numpy().astype(np.uint32)
    state = (own["kind"], keys, own["position"], own["has_gauss"], own["cached"])
    np.random.set_state(state)  # noqa: NPY002
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))


def seed_everything(seed: int) -> None:
    """Seed every generator of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    random.seed(seed)
