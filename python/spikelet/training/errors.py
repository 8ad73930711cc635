"""What training raises about its input; options with impossible values raise ``OptionError``."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from spikelet.errors import SpikeletError


class DataError(SpikeletError, ValueError):
    """Text or a tokenizer that cannot be trained on; the message names the file."""


class TrainingError(SpikeletError, RuntimeError):
    """A run that cannot start, resume or go on; the message says what to do."""


def cannot_write(path: Path, error: Exception) -> TrainingError:
    """Return the error that says why a file cannot be written, and how much room there is."""
    number = error.errno if isinstance(error, OSError) else None
    reason = str(error).partition("\n")[0]
    if number is not None:
        reason = "the disk is full" if number == errno.ENOSPC else os.strerror(number)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        reason += f"; {free / 1e6:,.1f} MB are free in {path.parent}"
    return TrainingError(f"{path} cannot be written: {reason}")
