"""`spikelet doctor`: what this installation runs on, why, and whether it computes right."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spikelet._models import DARWINKIT_HOMES
from spikelet.cli.terminal import Output, human_bytes, stdout

EPILOG = """\
The self-test compares logits with stored ones, bit for bit, on every instruction set of this CPU
and on every GPU that can be used.
Exit code 1 if it fails.

examples:
  spikelet doctor
  spikelet doctor --json > report.json
"""
# What matters for the kernels, of the flags that Linux names on x86 and on Arm.
_FLAGS = (
    *"sse4_2 avx f16c fma avx2 avx512f avx512bw avx512vl avx512_vnni avx512_bf16".split(),  # noqa: SIM905
    *"asimd asimddp".split(),  # noqa: SIM905
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "-m", "--model", metavar="MODEL", help="test with this model (default: the bundled one)"
    )
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    report = examine(args.model)
    out = stdout()
    if args.json:
        out.line(json.dumps(report, ensure_ascii=False, default=str))
    else:
        show(report, out)
    return 0 if report["ok"] else 1


def examine(model: str | None) -> dict[str, Any]:
    """Everything that the command reports."""
    import numpy as np

    import spikelet
    from spikelet import _spikelet

    features = spikelet.cpu_features()
    report: dict[str, Any] = {
        "versions": {
            "spikelet": spikelet.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": platform.platform(),
        },
        "paths": {
            "python": sys.executable,
            "package": str(Path(spikelet.__file__).parent),
            "extension": str(_spikelet.__file__),
            "home": str(spikelet.home()),
        },
        "cpu": {**features, "model": cpu_model(), "flags": cpu_flags()},
        "environment": {
            name: os.environ[name]
            for name in (
                "SPIKELET_DEVICE",
                "SPIKELET_ISA",
                "SPIKELET_HOME",
                *DARWINKIT_HOMES,
                "SPIKELET_DEBUG",
            )
            if name in os.environ
        },
        "gpu": spikelet.gpu_features(),
    }
    usable = [gpu["device"] for gpu in report["gpu"]["devices"] if gpu["problem"] is None]
    report["self_test"] = self_test(model, features["levels"], usable)
    chosen = features["chosen"] is not None and report["gpu"]["chosen"] is not None
    report["ok"] = chosen and report["self_test"]["ok"]
    return report


def self_test(model: str | None, levels: list[str], devices: list[str]) -> dict[str, Any]:
    """The outcome on every level and GPU; a model that cannot be found is a failed test."""
    import spikelet
    from spikelet.cli.selftest import run_levels

    try:
        path = spikelet.find_model(model)
        outcomes = run_levels(path, levels, devices)
    except (spikelet.SpikeletError, OSError, ValueError, KeyError) as error:
        return {"ok": False, "error": str(error), "levels": []}
    return {
        "ok": all(outcome.ok for outcome in outcomes),
        "model": str(path),
        "levels": [asdict(outcome) for outcome in outcomes],
    }


def cpu_model() -> str:
    """The processor's name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """What the processor can do, as far as kernels care."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features", "")).split()
    return [flag for flag in _FLAGS if flag in flags]


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def show(report: dict[str, Any], out: Output) -> None:
    """The report for people."""

    def section(title: str) -> None:
        out.line(out.paint(title, "bold"))

    def row(name: str, value: object) -> None:
        out.line(f"  {name:14}{value}")

    versions, cpu, gpu = report["versions"], report["cpu"], report["gpu"]
    section(f"spikelet {versions['spikelet']}")
    row("python", f"{versions['python']}, numpy {versions['numpy']}")
    row("system", versions["system"])
    for name in ("package", "home"):
        row(name, report["paths"][name])
    for name, value in report["environment"].items():
        row(name, value)
    section("cpu")
    row("model", cpu["model"])
    row("features", " ".join(cpu["flags"]) or "unknown")
    row("kernels", ", ".join(cpu["levels"]))
    row("used", f"{cpu['chosen'] or 'none'}: {cpu['reason']}")
    row("threads", thread_reason(cpu))
    section("gpu")
    row("driver", f"for CUDA {gpu['driver']}" if gpu["driver"] else "none")
    for found in gpu["devices"]:
        row(found["device"], describe_gpu(found))
    row("auto", f"{gpu['chosen'] or 'none'}: {gpu['reason']}")
    section("self-test")
    test = report["self_test"]
    if "error" in test:
        row(out.paint("failed", "red", "bold"), test["error"])
    for level in test["levels"]:
        mark = out.paint("ok    ", "green") if level["ok"] else out.paint("FAILED", "red", "bold")
        row(level["level"], f"{mark}  {level['detail']}")
    verdict = "everything is well" if report["ok"] else "something is wrong"
    out.line(out.paint(verdict, "green" if report["ok"] else "red", "bold"))


def describe_gpu(found: dict[str, Any]) -> str:
    """A card, and whether it can be used."""
    parts = [found["name"] or "unknown"]
    if found["capability"]:
        major, minor = found["capability"]
        parts.append(f"capability {major}.{minor}, {found['multiprocessors']} multiprocessors")
    if found["memory_total"]:
        free, total = human_bytes(found["memory_free"]), human_bytes(found["memory_total"])
        parts.append(f"{free} of {total} free")
    parts.append(found["problem"] or "the kernels are loaded")
    return "; ".join(parts)


def thread_reason(cpu: dict[str, Any]) -> str:
    """How many threads a model gets unless told otherwise, and why."""
    physical, logical = cpu["physical_cores"], cpu["logical_cores"]
    if physical < logical:
        return (
            f"{physical}: one for each physical core; the {logical} logical ones share their units"
        )
    return f"{physical}: one for each core"
