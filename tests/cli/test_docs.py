"""The shell snippets of docs/cli.md run, one after the other in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import spikelet
from spikelet.cli import available_commands

from .helpers import TESTS, environment

PAGE = TESTS.parent / "docs" / "cli.md"


def snippets() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_command_has_its_section() -> None:
    text = PAGE.read_text()
    assert all(f"\n## {name}\n" in text for name in available_commands())


def test_snippets_run(tmp_path: Path) -> None:
    if "bundled" not in spikelet.local_models():
        pytest.skip("the snippets use the bundled model, which this checkout has not")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in {"spikelet": "-m spikelet", "python3": ""}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    env = environment()
    env["PATH"] = f"{programs}:{env['PATH']}"
    assert len(snippets()) >= 10
    for snippet in snippets():
        run = subprocess.run(
            ["bash", "-eu", "-c", snippet],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{snippet}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stderr, snippet
