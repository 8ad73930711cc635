"""The model that comes with the package, on one thread."""

from __future__ import annotations

import pytest

import spikelet


@pytest.fixture(scope="session")
def bundled() -> spikelet.Model:
    if "bundled" not in spikelet.local_models():
        pytest.skip("this checkout has no bundled model")
    return spikelet.load(threads=1)
