"""The card as its driver describes it. It is asked, never set."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

FIELDS = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem",
    "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu", "pstate",
    "ecc.mode.current", "mig.mode.current", "persistence_mode",
)  # fmt: skip
CHANGING = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def ask(fields: tuple[str, ...] = FIELDS) -> dict[str, str]:
    """Return what nvidia-smi says of the first card; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(fields, (word.strip() for word in ",".join(values).split(",")), strict=False))


def describe() -> dict[str, str]:
    """Return all of it, or what every driver knows: one unknown field spoils a question."""
    return ask() or ask(("name", "driver_version", "memory.total"))


def now() -> dict[str, str]:
    """Return clocks, power and temperature at this moment."""
    return ask(CHANGING)


def commit_of(wheel: Path) -> str:
    """Return the checkout that a wheel was built from, as `make gpu-wheel` wrote it beside it."""
    file = wheel.parent / "COMMIT"
    return file.read_text().strip() if file.exists() else "unknown"


def machine(device: str, dry: bool) -> dict[str, Any]:
    """Return all that a figure has to be read with."""
    import harness

    found = {**harness.machine(), "device": device, "dry": dry, "card": describe()}
    found["commit"] = os.environ.get("GPU_CHECK_COMMIT") or found["commit"]
    try:
        import torch

        found["torch"] = torch.__version__
        found["cuda"] = torch.version.cuda
    except ImportError:
        found["torch"] = found["cuda"] = None
    return found


def line(found: dict[str, Any]) -> str:
    """Say it in a line."""
    card = found.get("card") or {}
    name = card.get("name") or ("emulated driver" if found.get("dry") else "no card")
    words = [name]
    if "driver_version" in card:
        words.append(f"driver {card['driver_version']}")
        words.append(f"up to {card.get('clocks.max.sm', '?')}")
    words.append(f"torch {found.get('torch')}")
    words.append(f"{found.get('cpu')}, {found.get('cores')} cores")
    words.append(f"spikelet {found.get('spikelet')} ({found.get('commit')})")
    words.append(str(found.get("date")))
    return ", ".join(words)
