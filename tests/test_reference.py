"""The reference is right: it gives what the authors' own code gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from reference import naive_rwkv4, naive_spikegpt

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
