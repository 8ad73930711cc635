"""The ways in which a pass can be driven on the GPU, each forced by an environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "SPIKELET_CUDA_DRIVER"
DEFAULT = "default"
MODES = (DEFAULT,)
"""What is chosen when nothing is said comes first."""


@contextmanager
def mode(name: str) -> Iterator[None]:
    """Models that are loaded meanwhile are driven so."""
    before = os.environ.pop(VARIABLE, None)
    if name != DEFAULT:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
