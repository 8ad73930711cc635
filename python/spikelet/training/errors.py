"""What training raises about its input; options with impossible values raise ``ValueError``."""

from __future__ import annotations


class DataError(ValueError):
    """Text or a tokenizer that cannot be trained on; the message names the file."""


class TrainingError(RuntimeError):
    """A run that cannot start, resume or go on; the message says what to do."""
