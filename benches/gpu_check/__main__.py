"""Check and measure spikelet on a machine with an NVIDIA GPU, in one call that loses nothing.

    make gpu-wheel                                       # here: dist/spikelet-*.whl, dist/COMMIT
    python3 benches/gpu_check --wheel dist --out "$OUT"  # there: all parts, in 9.5 minutes
    python3 benches/gpu_check --list                     # the parts, and what each is for
    make gpu-check                                       # here: the same lines, emulated and tiny

The machine with the GPU needs Linux on x86-64 with glibc 2.34 or later (the wheel's name says so),
Python 3.10 or later with numpy, safetensors and PyTorch for CUDA, this checkout and the wheel. It
needs no network, no Rust and no CUDA toolkit; where nvcc and compute-sanitizer are found, the parts
`limits` and `sanitize` run as well. Where commands and files are sent to another machine, that is:

    PYTHONUNBUFFERED=1 python3 benches/gpu_check --wheel dist --out "$OUT" --seconds 570

with the folder `dist` carried along. Eight files come back: `gpu-PART.json` for each part and
`gpu-check.md`, a summary, whose text is also printed last. Copied to benches/results they become a
section of benches/README.md by `python benches/table.py`. A second call does what the first had no
time for: `--parts speed,speculation`.

Parts run in order of importance, each in a process of its own with a share of the time; what one
leaves over goes to the next. A part is a list of units, and its file is written after every row:
a unit that crashes, hangs or loses the device costs nothing but itself, for the part goes on
behind it in a new process. The exit code is 1 if anything was wrong, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if Path(sys.path[0]).resolve() == HERE:
    sys.path[0] = str(HERE.parent)

from gpu_check import card, summary  # noqa: E402
from gpu_check.child import DRIVER  # noqa: E402
from gpu_check.record import AGAIN, Record  # noqa: E402

GRACE = 15.0
"""Seconds beyond its own time after which a part is ended from outside."""


@dataclass(frozen=True)
class Part:
    """One kind of check; `share` is of the time of all."""

    name: str
    share: float
    what: str


PARTS = (
    Part("machine", 60, "doctor, the card and its clocks, time to compile PTX and to load"),
    Part("exact", 130, "logits, states and texts on the GPU have the bits of the CPU's"),
    Part("training", 60, "operators of training against plain torch and the CPU; their speed"),
    Part("sanitize", 75, "compute-sanitizer on a small model: memory, races, barriers"),
    Part("limits", 25, "what the card gives: bandwidth, arithmetic, launches, barriers"),
    Part("speed", 190, "tokens per second of published shapes, in turns with PyTorch"),
    Part("speculation", 50, "guessing ahead: the bundled model, and given rates of acceptance"),
)


def parser() -> argparse.ArgumentParser:
    """Return the command line's options."""
    made = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(part.name for part in PARTS)
    made.add_argument("--parts", default=names, help="some of %(default)s, in this order")
    made.add_argument("--seconds", type=float, default=570, help="for all; default: %(default)s")
    made.add_argument("--out", type=Path, default=ROOT / "dist" / "gpu-check", help="result folder")
    made.add_argument("--wheel", type=Path, help="a wheel, or a folder with one: what is checked")
    made.add_argument("--device", default="cuda", help="what is compared with the CPU")
    made.add_argument(
        "--dry", action="store_true",
        help="a rehearsal: tiny shapes on the emulated driver, or on the CPU with --device cpu",
    )  # fmt: skip
    made.add_argument("--list", action="store_true", help="print the parts and end")
    made.add_argument("--work", type=Path, help="folder for models; default: made and removed")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def wheel_file(given: Path) -> Path:
    """Return the newest wheel in a folder, or the one given."""
    if given.is_file():
        return given
    found = sorted(given.glob("spikelet-*.whl"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit(f"{given} holds no spikelet-*.whl: run `make gpu-wheel` and carry dist")
    return found[-1]


def install(wheel: Path, target: Path) -> None:
    """Put a wheel into a folder, with no index and nothing else."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{wheel.name} cannot be installed here:\n{done.stderr.strip()}")


def roomy_folder() -> Path:
    """Return a new folder for models: in memory where that is large, else on disk."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 40e9
    return Path(tempfile.mkdtemp(prefix="gpu-check-", dir=shared if roomy else None))


def emulated() -> str:
    """Build the emulated driver with all kernels and the probes; return its path."""
    program = ROOT / "scripts" / "emulated_cuda.py"
    command = [sys.executable, str(program), "--with", str(HERE / "probes.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program.name}: {done.stderr.strip()}")
    return done.stdout.strip()


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a process that had its time; one that hangs in the driver is left behind."""
    for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        child.send_signal(number)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return


def run_part(part: Part, seconds: float, file: Path, command: list[str]) -> None:
    """Run one part until it is through, begun anew after each unit that ended its process."""
    end = time.monotonic() + seconds
    turn = 0
    while True:
        left = end - time.monotonic()
        log = file.with_suffix(".stderr")
        with log.open("wb") as errors:
            own = ["--child", part.name, "--seconds", f"{left:.1f}"]
            child = subprocess.Popen([*command, *own], stderr=errors)
            try:
                code = child.wait(left + GRACE)
            except subprocess.TimeoutExpired:
                stop(child)
                code = None
        said = log.read_text(errors="replace")
        log.unlink()
        record = Record.open(file, part.name)
        running = record.running()
        if code not in (0, AGAIN):
            print(said[-3000:], flush=True)
            record.died("took too long" if code is None else f"exit code {code}", said[-2000:])
        turn += 1
        # Without a unit to blame the next process would end like this one.
        if code == 0 or (code != AGAIN and running is None) or end - time.monotonic() < 5:
            return


def main() -> int:
    """Run parts; the child of one of them runs its units."""
    args = parser().parse_args()
    if args.list:
        for part in PARTS:
            print(f"{part.name:12} {part.share / sum(p.share for p in PARTS):4.0%}  {part.what}")
        return 0
    if args.child:
        from gpu_check import child

        return child.run(args)
    known = {part.name: part for part in PARTS}
    wrong = [name for name in args.parts.split(",") if name not in known]
    if wrong:
        raise SystemExit(f"{wrong[0]!r} is none of {', '.join(known)}")
    parts = [known[name] for name in args.parts.split(",")]
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.work or roomy_folder()
    work.mkdir(parents=True, exist_ok=True)
    # What passes cost is measured here and now, and forgotten.
    environment = {**os.environ, "SPIKELET_CACHE": str(work / "cache")}
    command = [sys.executable, str(HERE), "--out", str(args.out), "--work", str(work)]
    command += ["--device", args.device, *(["--dry"] if args.dry else [])]
    try:
        if args.wheel:
            wheel = wheel_file(args.wheel)
            install(wheel, work / "site")
            path = [str(work / "site"), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
            environment["GPU_CHECK_COMMIT"] = card.commit_of(wheel)
        if args.dry and args.device != "cpu":
            environment[DRIVER] = emulated()
            # Its name there is libcuda.so.
            found = [str(Path(environment[DRIVER]).parent), environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, found))
        os.environ.update(environment)
        print(f"{work}: {shutil.disk_usage(work).free / 1e9:.0f} GB free", flush=True)
        for i, part in enumerate(parts):
            file = args.out / f"gpu-{part.name}.json"
            file.unlink(missing_ok=True)
            left = args.seconds - (time.monotonic() - begun)
            own = left * part.share / sum(other.share for other in parts[i:])
            print(f"\n== {part.name}: {part.what} ({own:.0f} s)", flush=True)
            if own < 2:
                Record.open(file, part.name).died("no time was left", "")
                continue
            run_part(part, own, file, command)
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    found = summary.read(args.out)
    text = summary.render(found)
    (args.out / "gpu-check.md").write_text(text)
    print(f"\n{text}")
    print(json.dumps({"seconds": round(time.monotonic() - begun), "wrong": summary.wrong(found)}))
    return 1 if summary.wrong(found) else 0


if __name__ == "__main__":
    sys.exit(main())
