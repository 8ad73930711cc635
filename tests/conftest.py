"""What all tests share: the golden models, and one of them that writes bytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import spikelet

# What the engine measures of a machine is no concern of the user's cache while tests keep it busy.
_cache = tempfile.TemporaryDirectory(prefix="spikelet-cache-")
os.environ["SPIKELET_CACHE"] = _cache.name
# Tests that want a GPU say so; the others are about the CPU, whatever machine they run on.
os.environ["SPIKELET_DEVICE"] = "cpu"

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden models."""
    return GOLDEN


@pytest.fixture(scope="session")
def model() -> spikelet.Model:
    """The smallest SpikeGPT; it has no tokenizer."""
    return spikelet.load(GOLDEN / "spikegpt-tiny", threads=1)


@pytest.fixture(scope="session")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer of bytes, and with an end-of-text token."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    shutil.copytree(GOLDEN / "spikegpt-tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"tokenizer_class": "bytes", "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def writer(bytes_folder: Path) -> spikelet.Model:
    """A model that reads and writes bytes: its text is broken UTF-8 most of the time."""
    return spikelet.load(bytes_folder, threads=1)
