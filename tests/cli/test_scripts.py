"""Scripts that belong to the command line: stored logits, and the picture of a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from spikelet.cli.selftest import FILE_NAME, run_levels

from .conftest import make_model
from .helpers import TESTS, environment

SCRIPTS = TESTS.parent / "scripts"


def run_script(name: str, *words: str | Path) -> str:
    run = subprocess.run(
        [sys.executable, SCRIPTS / name, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_stored_logits_are_those_of_every_level(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert "wrote" in run_script("make_selftest.py", folder)
    answer = json.loads((folder / FILE_NAME).read_text())
    assert set(answer) == {"dtype", "ids", "logits_sha256", "last_logits"}
    (outcome,) = run_levels(folder, ["portable"])
    assert outcome.ok
    assert "the stored logits" in outcome.detail


def test_a_terminal_picture_holds_what_was_shown(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    code = r"print('\x1b[2mdim\x1b[0m <b>&', 'word ' * 30)"
    run_script("terminal_svg.py", picture, "--columns", "60", "--", sys.executable, "-c", code)
    root = ET.parse(picture).getroot()
    texts = ["".join(line.itertext()) for line in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0].startswith("$ ")
    shown = "".join(texts[texts.index(next(line for line in texts if line.startswith("dim"))) :])
    assert shown.split() == ["dim", "<b>&", *["word"] * 30]
    assert all(len(line) <= 61 for line in texts)
    (dim,) = (span for span in root.iter("{http://www.w3.org/2000/svg}tspan") if span.text == "dim")
    assert dim.get("fill") == "#8b949e"
