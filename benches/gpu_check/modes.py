"""The ways in which a pass can be driven on the GPU, each forced by an environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "SPIKELET_CUDA_DRIVER"
DEFAULT = "default"
FORCED = ("chain", "graph", "cooperative")
MODES = (DEFAULT, *FORCED)


@contextmanager
def mode(name: str) -> Iterator[None]:
    """Models that compute for the first time meanwhile are driven so from then on.

    A model keeps its runners, and a runner looks when it is made.
    """
    before = os.environ.pop(VARIABLE, None)
    if name != DEFAULT:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
