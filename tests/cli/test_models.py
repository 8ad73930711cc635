"""`spikelet models`: what can be loaded by name."""

from __future__ import annotations

import json
from pathlib import Path

import spikelet

from .conftest import make_model
from .helpers import Cli


def test_models_of_the_home_are_listed_and_can_be_loaded(cli: Cli) -> None:
    make_model(spikelet.home() / "models" / "fox")
    make_model(spikelet.home() / "runs" / "night")
    rows = {row["name"]: row for row in json.loads(cli("models", "--json").out)}
    assert {"fox", "night"} <= set(rows)
    assert rows["fox"]["model_type"] == "spikegpt"
    assert rows["fox"]["dtype"] == "f32"
    assert (
        rows["fox"]["file_bytes"] == Path(rows["fox"]["path"], "model.safetensors").stat().st_size
    )
    out = cli("models").out
    assert out.splitlines()[0].split() == ["name", "type", "parameters", "dtype", "size", "changed"]
    assert any(line.startswith("fox") and "249k" in line for line in out.splitlines())
    assert cli("info", "night").code == 0


def test_a_broken_model_is_listed_with_its_reason(cli: Cli) -> None:
    folder = make_model(spikelet.home() / "models" / "broken")
    (folder / "model.safetensors").write_bytes(b"short")
    result = cli("models")
    assert result.code == 0
    (line,) = (line for line in result.out.splitlines() if line.startswith("broken"))
    assert "model.safetensors" in line


def test_an_empty_home_is_no_error(cli: Cli) -> None:
    result = cli("models")
    assert result.code == 0
    assert result.err == ""


def test_an_unknown_name_says_where_was_looked(cli: Cli) -> None:
    result = cli("info", "no-such-model")
    assert result.code == 1
    assert "no-such-model" in result.err
