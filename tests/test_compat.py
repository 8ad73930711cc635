"""A script written for DarwinKit changes its imports only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from spikelet import training
from spikelet.compat import darkit

PAGE = Path(__file__).parent.parent / "docs" / "darwinkit.md"


def test_the_names_are_there() -> None:
    for name in darkit.__all__:
        assert getattr(darkit, name) is not None
    assert darkit.Trainer is darkit.FabricTrainer is training.Trainer
    assert darkit.Predicter is training.Predicter
    assert darkit.SpikeGPTTrainConfig is darkit.TrainerConfig


def test_what_is_missing_says_why() -> None:
    with pytest.raises(ImportError, match="SpikeLM is a BERT-like model"):
        from spikelet.compat.darkit import SpikeLM  # type: ignore[attr-defined] # noqa: F401
    with pytest.raises(ImportError):
        from spikelet.compat.darkit import Nonsense  # type: ignore[attr-defined] # noqa: F401


def test_the_page_names_every_name() -> None:
    text = PAGE.read_text()
    for name in darkit.__all__:
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", text), name
