"""A small model with a byte tokenizer, and the command line called in this process."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from .helpers import TESTS, Cli, Result


def make_model(folder: Path, **generation_config: object) -> Path:
    """The golden SpikeGPT with bytes as its tokens."""
    golden = TESTS / "golden" / "spikegpt-tiny"
    folder.mkdir(parents=True)
    shutil.copy(golden / "model.safetensors", folder)
    config = json.loads((golden / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tokenizer_class": "bytes"}))
    if generation_config:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's models nor the user's settings."""
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path / "spikelet-home"))
    for name in ("SPIKELET_DEBUG", "SPIKELET_ISA", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("info", folder)` runs the command in this process."""
    from spikelet.cli import main

    def run(*words: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run
