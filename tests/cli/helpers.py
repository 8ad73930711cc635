"""Ways to run the command line: in this process, as a program, and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any, Protocol

PROGRAM = (sys.executable, "-m", "spikelet")
TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    def __call__(self, *words: str | Path, stdin: bytes = b"") -> Result: ...


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment without what changes colours or errors."""
    dropped = ("NO_COLOR", "SPIKELET_DEBUG", "SPIKELET_ISA", "COLUMNS", "LINES")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**env, "TERM": "xterm-256color", **(extra or {})}


def start(
    *words: str | Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """The program with unbuffered pipes, still running."""
    streams: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)], bufsize=0, env=environment(env), **{**streams, **options}
    )


class Terminal:
    """The program on a terminal of its own: what it shows, and keys to press."""

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        columns: int = 80,
        env: Mapping[str, str] | None = None,
    ) -> None:
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._master = master
        self.shown = ""
        self._seen = 0
        self._raw = b""
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(env),
            # A session of its own with this terminal, so that Ctrl-C on it reaches the program.
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Read until `text` (with "" anything) is shown after what was waited for before."""
        deadline = time.monotonic() + timeout
        while (at := self.shown.find(text, self._seen)) < 0 or at == len(self.shown):
            assert time.monotonic() < deadline, f"waited for {text!r}, shown: {self.shown!r}"
            if not self._read(0.2) and self.process.poll() is not None:
                raise AssertionError(f"ended before {text!r} was shown: {self.shown!r}")
        self._seen = at + len(text)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def finish(self, timeout: float = 20.0) -> int:
        """Everything to the end; the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None or self._read(0.0):
            assert time.monotonic() < deadline, f"still running, shown: {self.shown!r}"
            self._read(0.1)
        os.close(self._master)
        return self.process.returncode

    def _read(self, timeout: float) -> bool:
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has gone and closed its side
            return False
        self._raw += data
        self.shown = self._raw.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


def _own_terminal() -> None:
    os.setsid()
    ioctl(0, termios.TIOCSCTTY, 0)
