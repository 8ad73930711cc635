"""Several processes that train one model, as ``torchrun`` starts them: one per GPU, or on CPUs.

Each process holds the whole model and takes its share of every batch; gradients are averaged, so
all stay equal. Only the first writes files. Where one process has to decide for all, such as when
to save, it says so in the exchange that every step has anyway.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from spikelet.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of the process on its machine, and of its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0


def join_world(device_num: int) -> World:
    """Join the other processes, where the environment says that there are some."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if not distributed.is_available() or (size == 1 and not distributed.is_initialized()):
        if device_num > 1:
            raise TrainingError(
                f"device_num is {device_num}, but this is a single process; start it as "
                f"torchrun --nproc_per_node={device_num} SCRIPT (or spikelet train --device-num "
                f"{device_num})"
            )
        return World()
    if not distributed.is_initialized():
        # Numbers of the loop travel over gloo, so that they need not visit the GPU.
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        atexit.register(distributed.destroy_process_group)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if device_num not in (1, size):
        raise TrainingError(f"device_num is {device_num}, but {size} processes were started")
    return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def add_up(world: World, values: Sequence[float]) -> list[float]:
    """Return the sums over all processes, in double precision."""
    if world.size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return [float(value) for value in total]


def gather(world: World, value: Any) -> list[Any]:
    """Return the values of all processes in the first one, and nothing in the others."""
    if world.size == 1:
        return [value]
    found: list[Any] | None = [None] * world.size if world.is_first else None
    distributed.gather_object(value, found)
    return found or []


def wait_for_all(world: World) -> None:
    """Return when every process has come here."""
    if world.size > 1:
        distributed.barrier()


def average_gradients(world: World, module: nn.Module) -> nn.Module:
    """Return a module whose backward pass averages the gradients over all processes."""
    if world.size == 1:
        return module
    return nn.parallel.DistributedDataParallel(module)
