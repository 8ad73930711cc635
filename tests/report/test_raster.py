"""The spike raster shows what the engine computed."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spikelet
from spikelet.report import collect
from spikelet.report.raster import MAX_TOKENS, choose_neurons, make_raster

from .fixtures import GOLDEN, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "fox", steps=20)


def unpacked(raster: dict[str, Any]) -> np.ndarray:
    """Spikes as [band, line, token], as the page reads them."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(raster["bits"]), np.uint8))
    shape = (len(raster["bands"]), len(raster["bands"][0]["neurons"]), len(raster["tokens"]))
    return bits[: np.prod(shape)].reshape(shape)


def test_marks_are_the_spikes_of_the_chosen_neurons(run: Path) -> None:
    raster = make_raster(run, "The fox slept.")
    trace = spikelet.load(run, threads=1).trace("The fox slept.")
    spikes = unpacked(raster)
    for band, lines in zip(raster["bands"], spikes, strict=True):
        expected = trace.spikes[band["layer"], band["site"]][:, band["neurons"]].T
        np.testing.assert_array_equal(lines, expected)
        assert band["rate"] == pytest.approx(
            trace.firing_rates[band["layer"], band["site"]], abs=1e-4
        )
        assert np.all(np.diff(lines.sum(axis=1).astype(int)) <= 0), "the busiest at the top"
    assert raster["tokens"] == list("The fox slept.")
    assert raster["cut"] is False
    assert raster["share"][3] == pytest.approx(trace.spikes[:, :, 3].mean(), abs=1e-4)
    assert raster["surprise"][0] is None
    assert np.shape(raster["relu2"]) == (4, 14)


def test_neurons_are_chosen_evenly_over_the_ranks_of_those_that_fire() -> None:
    counts = np.array([0, 5, 0, 1, 9, 3, 0, 2])
    assert list(choose_neurons(counts, 3)) == [4, 5, 3]
    assert list(choose_neurons(counts, 5)) == [4, 1, 5, 7, 3]
    assert list(choose_neurons(counts, 8)) == [4, 1, 5, 7, 3, 0, 2, 6], "silent ones fill up"


def test_a_long_text_is_cut_and_a_character_may_be_several_tokens(run: Path) -> None:
    raster = make_raster(run, "é" + "x" * 10_000)
    assert len(raster["tokens"]) == MAX_TOKENS
    assert raster["tokens"][:3] == ["C3", "A9", "x"]
    assert raster["cut"] is True


def test_a_model_without_spikes_shows_its_densities(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "rwkv4-tiny", tmp_path / "rwkv")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "bytes"}))
    raster = make_raster(folder, "The fox")
    assert (raster["bands"], raster["bits"], raster["share"]) == ([], "", [])
    assert np.shape(raster["relu2"])[1] == 7


def test_what_is_read_by_default_and_why_there_may_be_no_raster(run: Path, tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", model=False)
    mute = make_run(tmp_path / "mute")
    shutil.copy(GOLDEN / "spikegpt-tiny" / "config.json", mute)
    shown = collect([str(bare), str(run), str(mute)], raster=True)["runs"]
    assert "no exported model yet" in shown[0]["raster_note"]
    assert "".join(shown[1]["raster"]["tokens"]).startswith("Once upon a time, there was a little")
    assert "tokenizer" in shown[2]["raster_note"]
    for folder in (bare, run):
        (folder / "training" / "samples.jsonl").unlink()
    (mute / "training" / "samples.jsonl").write_text("")
    shown = collect([str(bare), str(run), str(mute)], raster=True)["runs"]
    assert "".join(shown[1]["raster"]["tokens"]).startswith("Once upon a time there was")
