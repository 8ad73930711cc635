"""Which windows a process sees at a step, on its device, prepared ahead if asked for.

A step deals ``batch_size`` windows to every process in turn: two processes with batches of 8 see
what one with batches of 16 sees. Batches depend on the position alone, never on what came before.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from spikelet.training.trainer.distributed import World


class Dealer(Protocol):
    """``Windows`` or ``Streams``."""

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of windows ``first`` onwards."""


class Batches:
    """Deals this process its part.

    Args:
        dealer: knows every window by its number.
        batch_size: windows per process.
        world: the processes.
        device: where batches go.
        ahead: batches that one background thread prepares; 0 makes each when it is asked for.
    """

    def __init__(
        self, dealer: Dealer, batch_size: int, world: World, device: torch.device, ahead: int = 0
    ) -> None:
        self.dealer, self.batch_size, self.world = dealer, batch_size, world
        self.device, self.ahead = device, ahead
        self._pool = ThreadPoolExecutor(1, "batches") if ahead else None
        self._made: dict[int, Future[tuple[Tensor, Tensor]]] = {}

    @property
    def stride(self) -> int:
        """Windows that all processes together take at a time."""
        return self.batch_size * self.world.size

    def get(self, position: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the windows from number ``position`` on."""
        if self._pool is None:
            inputs, targets = self._make(position)
        else:
            for step in range(self.ahead + 1):
                number = position + step * self.stride
                if number not in self._made:
                    self._made[number] = self._pool.submit(self._make, number)
            inputs, targets = self._made.pop(position).result()
        # From pinned memory the copy runs beside the computation.
        return (
            inputs.to(self.device, non_blocking=True),
            targets.to(self.device, non_blocking=True),
        )

    def _make(self, position: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.dealer.batch(
            position + self.world.rank * self.batch_size, self.batch_size
        )
        if self.device.type == "cuda":
            return inputs.contiguous().pin_memory(), targets.contiguous().pin_memory()
        return inputs, targets

    def close(self) -> None:
        """End the background thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
