"""Build the kernels and a CUDA driver that runs them on the CPU; print the library's path.

    python scripts/emulated_cuda.py              # libcuda.so with all kernels/*.cu
    python scripts/emulated_cuda.py --sanitize   # the same with sanitizers for addresses and more

The library has the SONAME libcuda.so: opened by its path before anything asks for the driver, it
is the one that is found. What is built is kept by the hash of its sources: asking again is cheap.
Needs a C++ compiler and nothing else; kernels/README.md says what it can show.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class BuildError(Exception):
    """The library cannot be built; the message says why."""


def compiler() -> str:
    """Return the C++ compiler."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise BuildError("there is no C++ compiler (g++, or the one that CXX names)")
    return found


@cache
def options() -> tuple[str, ...]:
    """Return what every file is compiled with."""
    # Without it fmaf is a call: the kernels' arithmetic is little else.
    cpu = Path("/proc/cpuinfo")
    fma = platform.machine() == "x86_64" and cpu.exists() and " fma " in cpu.read_text()
    return (
        "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-Wno-unused-function", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC",
        "-DSPIKELET_SIMT", f"-I{KERNELS}", *(("-mfma", "-mavx2") if fma else ()),
    )  # fmt: skip


def digest(*parts: str) -> str:
    """Return a name for what was made of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def made_of(source: Path) -> dict[str, str]:
    """Return the text of a file and of all that it includes, by path."""
    found: dict[str, str] = {}
    wanted = [source]
    if source.suffix == ".cu":
        wanted.append(KERNELS / "common.cuh")
    while wanted:
        path = wanted.pop()
        if str(path) in found or not path.exists():
            continue
        found[str(path)] = text = path.read_text()
        for name in re.findall(r'^#include "(.+)"$', text, re.MULTILINE):
            wanted += [path.parent / name, KERNELS / name]
    return found


def compiled(source: Path, flags: tuple[str, ...], out: Path) -> Path:
    """Compile a .cpp or a .cu file, unless that was done before."""
    parts = [part for item in sorted(made_of(source).items()) for part in item]
    made = out / f"{source.stem}-{digest(*parts, compiler(), *options(), *flags)}.o"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=out) as work:
        unit, half_made = source, Path(work) / "made.o"
        if source.suffix == ".cu":
            # A module's own functions, whatever another module calls its.
            unit = Path(work) / f"{source.stem}.cpp"
            unit.write_text(f'#include "common.cuh"\nnamespace {{\n#include "{source}"\n}}\n')
        command = [compiler(), *options(), *flags, "-c", str(unit), "-o", str(half_made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{source} does not compile:\n{done.stderr}")
        half_made.replace(made)
    return made


def build(
    sources: list[Path] | None = None,
    *,
    sanitize: bool = False,
    private: bool = False,
    out: Path | None = None,
) -> Path:
    """Make a driver that runs the kernels of `sources` (all of kernels/*.cu); return its path.

    Nobody finds a `private` one who does not open it by its path.
    """
    out = out or Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "simt"
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(KERNELS.glob("*.cu")) if sources is None else sources
    flags = SANITIZE if sanitize else ("-O2",)
    units = [*sorted(KERNELS.glob("simt/*.cpp")), *sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: compiled(unit, flags, out), units))
    folder = out / digest(*(path.name for path in objects))
    library = folder / ("private.so" if private else "libcuda.so")
    name = () if private else ("-Wl,-soname,libcuda.so",)
    if not library.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as work:
            half_made = Path(work) / library.name
            command = [
                compiler(), *flags, "-shared", "-Wl,-Bsymbolic", *name, *map(str, objects),
                "-o", str(half_made),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BuildError(f"{library} cannot be linked:\n{done.stderr}")
            half_made.replace(library)
    return library


def sanitizer() -> Path | None:
    """Return AddressSanitizer's library, which has to be loaded first; None without one."""
    command = [compiler(), "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return Path(found) if Path(found).is_absolute() else None


def main() -> None:
    """Read the options, build, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitize", action="store_true", help="find steps beyond memory's ends")
    parser.add_argument("--out", type=Path, help="where to keep what is built")
    parser.add_argument(
        "--with", dest="more", type=Path, action="append", default=[], metavar="FILE.cu",
        help="kernels besides those of kernels/*.cu",
    )  # fmt: skip
    chosen = parser.parse_args()
    sources = sorted(KERNELS.glob("*.cu")) + [path.resolve() for path in chosen.more]
    try:
        print(build(sources, sanitize=chosen.sanitize, out=chosen.out))
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
