"""What the commands write on: colour, width, progress and numbers for people.

A stream that is no terminal gets plain text only: no colour, no carriage returns.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Self

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
_ERASE_LINE = "\r\x1b[2K"
# Control characters that a model may write and a terminal would obey, shown as pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES[0x7F] = 0x2421
_PICTURES.update(dict.fromkeys(range(128, 160), 65533))


class UsageError(Exception):
    """The command line asks for something that makes no sense: one line and exit code 2."""


class OutputError(Exception):
    """Standard output cannot take what was written (a full disk, not a closed pipe)."""


class Output:
    """One of the standard streams, and what it can show."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.colour = (
            self.is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "") != "dumb"
        )

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 where there is none."""
        if not self.is_terminal:
            return 80
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:  # a terminal in name only
            return shutil.get_terminal_size((80, 24)).columns

    def paint(self, text: str, *styles: str) -> str:
        """`text` in the given styles, or as it is where colour is not wanted."""
        if not self.colour or not text or not styles:
            return text
        codes = ";".join(STYLES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    def write(self, text: str) -> None:
        """Write and flush: whoever reads sees every token when it is made."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.strerror or str(error)) from error

    def line(self, text: str = "") -> None:
        """Writes a line."""
        self.write(text + "\n")

    def model_text(self, text: str, *styles: str) -> None:
        """Text of a model or a user: a terminal shows its control characters, and obeys none."""
        self.write(self.paint(text.translate(_PICTURES), *styles) if self.is_terminal else text)


def stdout() -> Output:
    """Where results go."""
    return Output(sys.stdout)


def stderr() -> Output:
    """Where everything else goes: progress, statistics, errors."""
    return Output(sys.stderr)


def prepare_streams() -> None:
    """UTF-8 whatever the locale says, and streams that exist even if the caller closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


def abandon_stdout() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at exit cannot fail."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


class Progress:
    """A bar on a terminal; in a log a plain line now and then. Nothing at all with `quiet`.

    Use as a context manager: leaving it clears the bar, whatever happened.
    """

    BAR_INTERVAL = 0.1
    LOG_INTERVAL = 10.0

    def __init__(
        self, label: str, total: int | None, *, unit: str = "", quiet: bool = False
    ) -> None:
        self._out = stderr()
        self._label = label
        self._total = total
        self._unit = unit
        self._quiet = quiet
        self._start = time.monotonic()
        self._shown = self._start if not self._out.is_terminal else 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def update(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """Say how far the work is. Cheap to call often: drawn ten times a second at most."""
        if total is not None:
            self._total = total
        now = time.monotonic()
        interval = self.BAR_INTERVAL if self._out.is_terminal else self.LOG_INTERVAL
        if self._quiet or now - self._shown < interval:
            return
        self._shown = now
        if self._out.is_terminal:
            self._out.write(_ERASE_LINE + self._bar(done, note))
            self._drawn = True
        else:
            self._out.line(self._log_line(done, note))

    def clear(self) -> None:
        """Takes the bar off the screen."""
        if self._drawn:
            self._out.write(_ERASE_LINE)
            self._drawn = False

    def _amount(self, count: int) -> str:
        return human_bytes(count) if self._unit == "bytes" else f"{human_count(count)}{self._unit}"

    def _numbers(self, done: int, note: str) -> str:
        text = self._amount(done)
        seconds = time.monotonic() - self._start
        if self._total:
            text += f" of {self._amount(self._total)}"
            if 0 < done < self._total and seconds > 1.0:
                text += f", {human_seconds(seconds * (self._total - done) / done)} left"
        return f"{text}  {note}" if note else text

    def _log_line(self, done: int, note: str) -> str:
        share = f" {100 * done // self._total:3d}%" if self._total else ""
        return f"{self._label}{share}  {self._numbers(done, note)}"

    def _bar(self, done: int, note: str) -> str:
        numbers = self._numbers(done, note)
        room = self._out.width - len(self._label) - len(numbers) - 8
        if not self._total or room < 8:
            return f"{self._label}  {numbers}"[: self._out.width - 1]
        length = min(room, 30)
        eighths = min(done, self._total) * length * 8 // self._total
        bar = "█" * (eighths // 8)
        if eighths % 8:
            bar += " ▏▎▍▌▋▊▉"[eighths % 8]
        share = 100 * min(done, self._total) // self._total
        return f"{self._label} {self._out.paint(bar.ljust(length), 'cyan')} {share:3d}%  {numbers}"


class Stages:
    """Work in stages: a bar for each in turn, and lines of results between them.

    Use as a context manager: leaving it clears the bar.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def report(self, stage: str, done: int, total: int, note: str = "", *, unit: str = "") -> None:
        """How far a stage is; a stage of another name begins a new bar."""
        if self._bar is None or stage != self._stage:
            self.clear()
            self._stage, self._bar = stage, Progress(stage, total, unit=unit, quiet=self._quiet)
        self._bar.update(done, note, total=total)

    def say(self, line: str) -> None:
        """A line of results, where the bar stood."""
        self.clear()
        if not self._quiet:
            stdout().line(line)

    def clear(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.clear()


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KB'. Powers of 1024, as file managers and `ls -h` count."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def human_count(count: float) -> str:
    """216034 -> '216k'. Powers of 1000, as parameters and tokens are counted."""
    for unit in ("", "k", "M", "G"):
        if count < 1000 or unit == "G":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if not unit or count >= 100 else f"{count:.1f}{unit}"


def human_seconds(seconds: float) -> str:
    """0.034 -> '34 ms', 95 -> '1m 35s'."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def table(rows: list[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as aligned lines; columns in `right` are flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines
