"""Configurations held against each other."""

from __future__ import annotations

import json
from pathlib import Path

from spikelet.report.configs import compare, flatten, read_configs


def test_g08_keys_are_marked_where_values_differ() -> None:
    first = {"Model": {"n_layer": 2, "deep": {"a": 1, "b": [1, 2]}}, "Training": {"name": "x"}}
    second = {"Model": {"n_layer": 4, "deep": {"a": 1}}, "Training": {"name": "y", "seed": 0}}
    model, training = compare([first, second])
    assert model == {
        "title": "Model",
        "rows": [
            {"key": "n_layer", "values": ["2", "4"], "differs": True},
            {"key": "deep.a", "values": ["1", "1"], "differs": False},
            {"key": "deep.b", "values": ["[1, 2]", None], "differs": True},
        ],
    }
    assert training["rows"] == [{"key": "seed", "values": [None, "0"], "differs": True}]


def test_of_one_run_nothing_differs() -> None:
    (section,) = compare([{"Model": {"a": 1}, "Run": {"series": {"x": ["step", "y"]}}}])
    assert section["rows"] == [{"key": "a", "values": ["1"], "differs": False}]


def test_texts_are_as_they_are_and_short() -> None:
    assert flatten({"a": "x", "b": "", "c": None, "d": True, "e": {}, "f": 1e-5}) == {
        "a": "x",
        "b": '""',
        "c": "null",
        "d": "true",
        "e": "{}",
        "f": "1e-05",
    }
    assert len(flatten({"a": "x" * 1000})["a"]) == 200


def test_files_that_are_missing_or_broken_are_empty(tmp_path: Path) -> None:
    place = tmp_path / "training"
    place.mkdir()
    assert not any(read_configs(place).values())
    (place / "trainer_config.json").write_text('{"seed": 1, ')
    (place / "external_config.json").write_text("[]")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "spikegpt"}))
    configs = read_configs(place)
    assert configs == {"Model": {"model_type": "spikegpt"}, "Training": {}, "Run": {}}
    (place / "config.json").write_text(json.dumps({"n_layer": 3}))
    assert read_configs(place)["Model"] == {"n_layer": 3}
