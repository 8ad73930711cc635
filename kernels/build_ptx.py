"""Compile the CUDA kernels to PTX: the only writer of kernels/ptx and python/spikelet/ptx.

    python kernels/build_ptx.py            # write the PTX and its manifest
    python kernels/build_ptx.py --check    # say whether they are what the sources give

PTX is checked in, so neither building nor using spikelet needs anything of CUDA but a driver. It
is made by one pinned NVRTC: a newer one would write a PTX version that older drivers refuse (12.0
gives 8.0, which drivers from 525 on read), and another one would write other bytes. `make
kernel-tools` installs it apart from everything else, because PyTorch brings an NVRTC of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
ROOT = KERNELS.parent
PTX = ROOT / "python" / "spikelet" / "ptx"  # read by Python; and what describes all of them
EMBEDDED = KERNELS / "ptx"  # becomes part of the engine
MODULES = ("train", "generate")
TARGETS = ("compute_80", "compute_90")
OPTIONS = ("--std=c++17", "--fmad=false")
NVRTC = "12.0.140"


def tools() -> Path:
    """Return the folder that `make kernel-tools` installs into."""
    return Path(os.environ.get("SPIKELET_KERNEL_TOOLS", ROOT / ".venv" / "kernel-tools"))


def sources(module: str) -> dict[str, str]:
    """Return the text of a module's .cu file and of all that it includes, by path."""
    found: dict[str, str] = {}
    wanted = [f"{module}.cu"]
    while wanted:
        name = wanted.pop()
        if name not in found and not name.startswith("simt/"):
            found[name] = (KERNELS / name).read_text()
            wanted += re.findall(r'^#include "(.+)"$', found[name], re.MULTILINE)
    return dict(sorted(found.items()))


def file_name(module: str, target: str) -> str:
    """Return the name of a module's PTX for a target."""
    return f"{module}.{target}.ptx"


def folder(module: str) -> Path:
    """Return where a module's PTX lies."""
    return EMBEDDED if module == "generate" else PTX


def sha256(text: str) -> str:
    """Return the hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(ptx: dict[str, str]) -> dict[str, object]:
    """Describe PTX files: what they were made of and with, and what they must contain."""
    return {
        "generated_by": "kernels/build_ptx.py",
        "nvrtc": NVRTC,
        "options": list(OPTIONS),
        "sources": {
            module: {name: sha256(text) for name, text in sources(module).items()}
            for module in MODULES
        },
        "ptx": {name: sha256(text) for name, text in sorted(ptx.items())},
    }


def checked_in() -> dict[str, str]:
    """Return the PTX files that are there, by name."""
    paths = (path for place in (PTX, EMBEDDED) for path in place.glob("*.ptx"))
    return {path.name: path.read_text() for path in sorted(paths, key=lambda path: path.name)}


def stale() -> str | None:
    """Say in what way the files differ from what the sources ask for; needs no CUDA."""
    path = PTX / "manifest.json"
    if not path.exists():
        return f"{path} is missing"
    if json.loads(path.read_text()) != manifest(checked_in()):
        return f"{path} does not fit the sources and the PTX beside it"
    if set(checked_in()) != {file_name(m, target) for m in MODULES for target in TARGETS}:
        return f"{PTX} and {EMBEDDED} hold other modules or targets than {__file__} names"
    return None


class Nvrtc:
    """The pinned compiler."""

    def __init__(self, folder: Path) -> None:
        """Load it from the folder that its wheel was installed into.

        Raises:
            FileNotFoundError: it is not there, or not in the pinned version.
        """
        path = folder / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
        if not (folder / f"nvidia_cuda_nvrtc_cu12-{NVRTC}.dist-info").is_dir() or not path.exists():
            raise FileNotFoundError(
                f"NVRTC {NVRTC} is not in {folder}; `make kernel-tools` installs it, "
                "SPIKELET_KERNEL_TOOLS names another folder"
            )
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: {self._library.nvrtcGetErrorString(code).decode()}")

    def _compile(self, program: ctypes.c_void_p, flags: list[bytes]) -> None:
        """Compile, in a thread that ends then: NVRTC leaves its thread in the locale C.

        In that, Python's text files would be ASCII.
        """
        with ThreadPoolExecutor(1) as thread:
            thread.submit(
                self._call, "nvrtcCompileProgram", program, len(flags),
                (ctypes.c_char_p * len(flags))(*flags),
            ).result()  # fmt: skip

    def _text(self, what: str, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.value.decode()

    def compile(self, module: str, target: str) -> str:
        """Return the PTX of a module for a target such as `compute_80`.

        Raises:
            RuntimeError: the kernels have an error; the message holds the compiler's lines.
        """
        files = sources(module)
        main = files.pop(f"{module}.cu")
        headers = (ctypes.c_char_p * len(files))(*(text.encode() for text in files.values()))
        names = (ctypes.c_char_p * len(files))(*(name.encode() for name in files))
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), main.encode(), f"{module}.cu".encode(),
            len(files), headers, names,
        )  # fmt: skip
        flags = [f"--gpu-architecture={target}".encode(), *(option.encode() for option in OPTIONS)]
        try:
            self._compile(program, flags)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self._text('ProgramLog', program)}") from None
        log = self._text("ProgramLog", program)
        if log.strip():
            raise RuntimeError(f"{module}.cu for {target}: warnings\n{log}")
        return self._text("PTX", program)


def build(compiler: Nvrtc) -> dict[str, str]:
    """Return all PTX files, by name."""
    return {
        file_name(module, target): compiler.compile(module, target)
        for module in MODULES
        for target in TARGETS
    }


def same(ptx: str, other: str) -> bool:
    """Whether two texts are one, but for where NVRTC puts a constant.

    Of two places it takes either, as addresses in its memory happen to be; in few kernels.
    """
    return sorted(ptx.splitlines()) == sorted(other.splitlines())


def unchanged(ptx: dict[str, str]) -> bool:
    """Whether PTX files are, in that sense, those that are checked in."""
    before = checked_in()
    return set(ptx) == set(before) and all(same(ptx[name], before[name]) for name in ptx)


def write(path: Path, text: str) -> None:
    """Write a file under another name and rename it."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    unfinished.replace(path)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    arguments = parser.parse_args()
    ptx = build(Nvrtc(tools()))
    if arguments.check:
        problem = stale() or (None if unchanged(ptx) else "NVRTC gives something else")
        print(problem or "up to date")
        return 1 if problem else 0
    before = checked_in()
    ptx = {
        name: before[name] if same(text, before.get(name, "")) else text
        for name, text in ptx.items()
    }
    for place in (PTX, EMBEDDED):
        place.mkdir(exist_ok=True)
        for path in place.glob("*.ptx"):
            path.unlink()
    for name, text in ptx.items():
        write(folder(name.partition(".")[0]) / name, text)
        print(f"{name}: {len(text) / 1000:.0f} kB")
    write(PTX / "manifest.json", json.dumps(manifest(ptx), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
