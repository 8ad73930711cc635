"""What training raises about its input; options with impossible values raise ``OptionError``."""

from __future__ import annotations

from spikelet.errors import SpikeletError


class DataError(SpikeletError, ValueError):
    """Text or a tokenizer that cannot be trained on; the message names the file."""


class TrainingError(SpikeletError, RuntimeError):
    """A run that cannot start, resume or go on; the message says what to do."""
