"""The environment that holds other people's engines, apart from the project's own.

It is made once, in the cache folder, with what a user gets from the package index. PyTorch is taken
from the interpreter that runs this, if it is there, because it is by far the largest part.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

MODULES = {
    "torch": "torch",
    "rwkv": "rwkv",
    "transformers": "transformers",
    "gguf": "gguf",
    "llama-cpp-python": "llama_cpp",
}
"""What is installed, and what it is imported as."""
LLAMA = "llama-cpp-python"
LLAMA_OPTIONS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_CURL=OFF"


@dataclass
class Environment:
    """A virtual environment and why things are missing from it, by package."""

    folder: Path
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def has(self, package: str) -> bool:
        """Whether a package is there."""
        find = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
        command = [self.python, "-c", find, MODULES[package]]
        return subprocess.run(command, check=False).returncode == 0

    def pip(self, *words: object, seconds: float | None = None, **variables: str) -> str:
        """Runs pip and returns nothing, or the end of what it said.

        Past the time it is ended, with all that it started.
        """
        process = subprocess.Popen(
            [self.python, "-m", "pip", "--disable-pip-version-check", *map(str, words)],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Others may be at work on this machine.
            preexec_fn=lambda: os.nice(10),  # noqa: PLW1509 - no threads here
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not finished after {(seconds or 0) / 60:.0f} minutes; goes on when run again"
        lines = [line for line in said.splitlines() if line.startswith("ERROR")]
        return "" if process.returncode == 0 else (lines or ["pip failed"])[-1]


def make(folder: Path, build_minutes: float) -> Environment:
    """Makes the environment, or completes it; what cannot be had is in `missing`.

    Args:
        folder: where it is or shall be.
        build_minutes: how long llama.cpp may be compiled; 0 leaves it out.
    """
    environment = Environment(folder)
    if not environment.python.exists():
        print(f"making {folder}", flush=True)
        venv.EnvBuilder(with_pip=True).create(folder)
    if importlib.util.find_spec("torch") is not None:
        own = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        (folder / own / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for package in MODULES:
        if environment.has(package):
            continue
        print(f"installing {package}", flush=True)
        if package == LLAMA:
            reason = build_llama(environment, 60 * build_minutes)
        else:
            reason = environment.pip("install", package)
        if reason:
            environment.missing[package] = reason
            print(f"{package} is not there: {reason}", flush=True)
    return environment


def build_llama(environment: Environment, seconds: float) -> str:
    """Compiles llama.cpp for this processor. Interrupted, it goes on where it stood."""
    if seconds <= 0:
        return "left out"
    work = environment.folder.with_name(f"{environment.folder.name}-llama")
    archives = list(work.glob("*.tar.gz"))
    if not archives:
        said = environment.pip("download", "--no-deps", f"--no-binary={LLAMA}", "-d", work, LLAMA)
        archives = list(work.glob("*.tar.gz"))
        if not archives:
            return said or "no source archive"
        with tarfile.open(archives[0]) as archive:
            archive.extractall(work, filter="data")
    (source,) = (path for path in work.glob("llama_cpp_python-*") if path.is_dir())
    return environment.pip(
        "install",
        f"--config-settings=build-dir={work / 'build'}",
        source,
        seconds=seconds,
        CMAKE_ARGS=LLAMA_OPTIONS,
        CMAKE_BUILD_PARALLEL_LEVEL=str(len(os.sched_getaffinity(0))),
    )
