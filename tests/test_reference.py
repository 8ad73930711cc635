"""The reference is right: it gives what the authors' own code gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from reference import naive_prophet, naive_rwkv4, naive_spikegpt

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["spikegpt-tiny", "spikegpt-tiny-realemb", "spikegpt-tiny-ffnpre"])
def test_spikegpt(name: str) -> None:
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    logits, spikes = naive_spikegpt(
        load_file(folder / "model.safetensors"),
        expected["ids"].tolist(),
        spike_embedding=config["spike_embedding"],
    )
    # float64 here and there; the file was rounded to float32 once.
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-6)
    for layer in range(config["num_hidden_layers"]):
        for site, lif in enumerate(["lif1", "lif2"]):
            np.testing.assert_array_equal(
                spikes[layer, site], expected[f"spikes.{layer}.{lif}"], strict=False
            )


def test_rwkv4() -> None:
    folder = GOLDEN / "rwkv4-tiny"
    expected = load_file(folder / "expected.safetensors")
    logits = naive_rwkv4(load_file(folder / "model.safetensors"), expected["ids"].tolist())
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["spikegpt-tiny", "rwkv4-tiny"])
def test_prophet(name: str) -> None:
    folder = GOLDEN.parent / "data" / "prophet" / name
    expected = load_file(folder / "expected.safetensors")
    for pairs in (1, 2):
        guesses, logits, stand_ins = naive_prophet(
            load_file(folder / "model.safetensors"),
            json.loads((folder / "config.json").read_text()),
            load_file(GOLDEN / name / "model.safetensors"),
            expected["hidden"][-pairs:],
            expected["tokens"][-pairs:].tolist(),
            len(expected[f"guesses.{pairs}"]),
        )
        np.testing.assert_array_equal(guesses, expected[f"guesses.{pairs}"])
        np.testing.assert_allclose(logits, expected[f"logits.{pairs}"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(stand_ins, expected[f"stand_ins.{pairs}"], rtol=0, atol=1e-5)
