"""One part in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_check import card
from gpu_check.record import Record, Unit, run_units

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
DRIVER = "GPU_CHECK_DRIVER"
"""Names the emulated driver, which children find where they look for libcuda."""


@dataclass
class Context:
    """What units have to know."""

    device: str
    dry: bool
    out: Path
    work: Path
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds of a measurement that count."""
        return 2 if self.dry else 7

    def left(self) -> float:
        """Seconds of this part that are left."""
        return self.begun + self.seconds - time.monotonic()

    def torch_device(self) -> str:
        """Where PyTorch computes: the emulated driver is not for it."""
        return "cuda" if self.device.startswith("cuda") and not self.dry else "cpu"

    def has_graphs(self) -> bool:
        """Whether PyTorch can capture what it does."""
        return self.torch_device() == "cuda"

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what was made under this name, made now if it was not.

        Only the last one is kept: models are large.
        """
        if name not in self.kept:
            self.kept.clear()
            self.kept[name] = make()
        return self.kept[name]

    def limits(self) -> dict[str, float]:
        """Return what the part `limits` measured, by name; nothing if it did not run."""
        file = self.out / "gpu-limits.json"
        if not file.exists():
            return {}
        units = Record.open(file, "limits").units.values()
        rows = [row for unit in units for row in unit["rows"]]
        return {row["what"]: row["value"]["median"] for row in rows if "what" in row}


def run(args: argparse.Namespace) -> int:
    """Run the units of one part. Returns the exit code."""
    context = Context(args.device, args.dry, args.out, args.work, args.seconds)
    record = Record.open(args.out / f"gpu-{args.child}.json", args.child)
    if not record.data["machine"]:
        record.data["machine"] = card.machine(args.device, args.dry)
        record.save()
    module = importlib.import_module(f"gpu_check.{args.child}")
    units: list[Unit] = module.units(context)
    code = run_units(units, record, args.seconds)
    record.data["card_at_the_end"] = card.now()
    record.save()
    return code
