"""What neurons and feed-forward parts did in a training step, for the log."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BlockActivity(NamedTuple):
    """What one block gives beside its output."""

    spikes: dict[str, Tensor]
    """Spikes ``[batch, time, channels]`` of ``"lif1"`` and ``"lif2"``; empty without neurons."""
    density: Tensor | None
    """Share of the feed-forward keys above zero, a scalar; None unless asked for."""


class ActivityRecord:
    """Collects firing rates and densities of the passes it is given to.

    Hand it to ``model.step_loss`` on the steps that are logged; without one nothing is counted.
    Several passes (gradient accumulation) are averaged. Nothing is copied from a device before
    ``rates`` is read.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._passes = 0

    def add(self, layer: int, activity: BlockActivity) -> None:
        """Count a block's pass."""
        values = {name: spikes.detach().mean() for name, spikes in activity.spikes.items()}
        if activity.density is not None:
            values["relu2"] = activity.density
        for name, value in values.items():
            key = f"blocks.{layer}.{name}"
            before = self._sums.get(key)
            self._sums[key] = value if before is None else before + value

    def end_pass(self, loss: Tensor) -> None:
        """Note the cross entropy of a pass, without any penalty."""
        self._losses.append(loss.detach())
        self._passes += 1

    @property
    def rates(self) -> dict[str, float]:
        """Firing rate per site, ``"blocks.0.lif1"``, and density, ``"blocks.0.relu2"``, 0 to 1."""
        return {name: float(value) / max(1, self._passes) for name, value in self._sums.items()}

    @property
    def loss(self) -> float | None:
        """Mean cross entropy in nats per token, without any penalty; None before the first pass."""
        return float(sum(map(float, self._losses))) / self._passes if self._passes else None

    @property
    def firing_rate(self) -> float | None:
        """Mean over all neurons; None for a model without."""
        return self._mean("lif1", "lif2")

    @property
    def relu2_density(self) -> float | None:
        """Mean over all layers."""
        return self._mean("relu2")

    def _mean(self, *sites: str) -> float | None:
        found = [value for name, value in self.rates.items() if name.split(".")[-1] in sites]
        return sum(found) / len(found) if found else None
