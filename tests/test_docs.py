"""Every Python snippet of README.md and docs/ runs; those for a GPU on the emulated driver."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from gpu import emulator

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets() -> list[tuple[str, str]]:
    """(name, code) of every fenced Python block."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: block.start()].count("\n") + 1
            found.append((f"{page.name}:{line}", block[1]))
    return found


def test_there_are_snippets() -> None:
    assert len(snippets()) >= 10


@pytest.mark.parametrize(("name", "code"), snippets(), ids=[name for name, _ in snippets()])
def test_snippet(name: str, code: str, tmp_path: Path) -> None:
    if "spikelet.training" in code:
        pytest.importorskip("torch")
    if 'device="cuda' in code:
        library = str(emulator.build(private=False))
        code = f"import ctypes\nctypes.CDLL({library!r}, ctypes.RTLD_GLOBAL)\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "SPIKELET_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"


def test_errors_on_the_page_of_gpus_are_those_of_the_engine() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text().partition("\n## Errors")[2].partition("\n## ")[0]
    engine = ROOT / "rust" / "engine" / "src"
    files = [engine / "model" / "device.rs", *engine.glob("cuda/**/*.rs")]
    source = "".join(file.read_text() for file in files)
    told = re.findall(r"^(?:\| )?`([^`]+)` (?:\||is an)", page, re.MULTILINE)
    assert len(told) == 9
    for text in told:
        assert text in source, text


def test_links_lead_somewhere() -> None:
    others = [
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benches/README.md",
        "examples/README.md",
    ]
    for page in [*PAGES, *(ROOT / name for name in others)]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_option_of_training_is_on_its_page() -> None:
    pytest.importorskip("torch")
    page = (ROOT / "docs" / "training.md").read_text()
    options = page[page.index("\n## Options") :]
    from spikelet.training.trainer_config import TrainerConfig

    for field in fields(TrainerConfig):
        found = re.search(rf"`{field.name}=([^`]*)`", options)
        assert found, field.name
        assert ast.literal_eval(found[1]) == field.default, field.name
    from spikelet.training.trainer.log import LanguageModelLog

    for field in fields(LanguageModelLog):
        assert f"`{field.name}`" in page, field.name
