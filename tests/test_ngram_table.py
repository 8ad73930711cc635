"""The table of a training text: built from Python, used by the engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import spikelet

TEXT = "the cat sat on the mat, and the cat sat on the hat. " * 20


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A model that reads bytes."""
    folder = tmp_path / "model"
    shutil.copytree(golden / "spikegpt-tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "bytes"}))
    return folder


def test_a_table_is_where_generation_looks_for_it(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = spikelet.build_ngram_table(folder, [TEXT], progress=lambda *at: seen.append(at))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [order["order"] for order in report] == [2, 3, 4, 5]
    path = folder / "prophet" / "ngram.safetensors"
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "spikelet-ngram", "version": "1", "vocab_size": "256"}
        assert sorted(file.keys()) == [f"order.{n}" for n in (2, 3, 4, 5)]
        for order in report:
            entries = file.get_tensor(f"order.{order['order']}")
            assert entries.shape[1:] == (4, 6)
            assert entries.size == order["bytes"]
            assert (entries[:, :, 5] > 0).sum() == order["entries"]
    # It goes along when the model is converted, also without a prophet.
    spikelet.convert(folder, folder.parent / "copy", dtype="bf16")
    copy = folder.parent / "copy" / "prophet" / "ngram.safetensors"
    assert copy.read_bytes() == path.read_bytes()


def test_text_and_ids_are_the_same(folder: Path, tmp_path: Path) -> None:
    spikelet.build_ngram_table(folder, [TEXT, "once more"], dst=tmp_path / "a")
    ids = [list(TEXT.encode()), list(b"once more")]
    report = spikelet.build_ngram_table(folder, ids, dst=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    small = spikelet.build_ngram_table(
        folder, ids, dst=tmp_path / "c", max_bytes=80, min_order=1, max_order=3
    )
    assert [order["order"] for order in small] == [1, 2, 3]
    assert sum(order["bytes"] for order in small) <= 80 < sum(order["bytes"] for order in report)


def test_what_makes_no_sense_is_refused(folder: Path, golden: Path, tmp_path: Path) -> None:
    for texts, options, message in (
        ([], {}, "texts"),
        ([""], {}, "texts"),
        ([TEXT], {"max_order": 9}, "max_order"),
        ([TEXT], {"min_order": -1}, "min_order"),
        ([TEXT], {"max_bytes": 5}, "max_bytes"),
        ([[256]], {}, "256"),
    ):
        with pytest.raises(spikelet.OptionError, match=message):
            spikelet.build_ngram_table(folder, texts, **options)
    with pytest.raises(TypeError):
        spikelet.build_ngram_table(folder, TEXT)
    with pytest.raises(spikelet.TokenizerError):
        spikelet.build_ngram_table(golden / "spikegpt-tiny", [TEXT], dst=tmp_path / "table")
    assert not (folder / "prophet").exists()
