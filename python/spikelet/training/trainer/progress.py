"""What a run shows: one line that is written over on a terminal, stamped lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from spikelet.training.trainer.log import LanguageModelLog

QUIET_SECONDS = 10.0
"""Time between lines where they are not written over."""


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``, infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def duration(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    whole = round(max(0.0, seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_text(row: LanguageModelLog, last_step: int, seconds_left: float) -> str:
    """Return the line of a row."""
    loss = math.nan if row.train_loss is None else row.train_loss
    parts = [f"step {row.step}/{last_step}", f"loss {loss:.4f}", f"ppl {perplexity(loss):.2f}"]
    if row.bits_per_byte is not None:
        parts.append(f"bpb {row.bits_per_byte:.4f}")
    if row.val_loss is not None:
        parts.append(f"val loss {row.val_loss:.4f}")
    if row.val_bits_per_byte is not None:
        parts.append(f"val bpb {row.val_bits_per_byte:.4f}")
    parts += [f"lr {row.learning_rate or 0:.2e}", f"{row.tokens_per_second or 0:,.0f} tok/s"]
    if row.firing_rate is not None:
        parts.append(f"firing {row.firing_rate:.1%}")
    parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


class Display:
    """Shows lines; every process but the first is silent.

    Args:
        stream: standard error by default.
        silent: show nothing.
    """

    def __init__(self, stream: TextIO | None = None, silent: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.silent = silent
        self.live = self.stream.isatty()
        self._shown_at = -math.inf
        self._open = False

    def show(self, text: str, important: bool = False) -> None:
        """Show where the run stands; not every line outside a terminal, but all important ones."""
        now = time.monotonic()
        if self.silent or not (self.live or important or now - self._shown_at >= QUIET_SECONDS):
            return
        self._shown_at = now
        if self.live and not important:
            self._write(f"\r\x1b[K{text}")
            self._open = True
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self.silent:
            return
        start = "\r\x1b[K" if self.live else time.strftime("%H:%M:%S  ")
        self._write(f"{start}{text}\n")
        self._open = False

    def end(self) -> None:
        """Leave the line that is written over."""
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
