"""The stub says what the compiled module is: names, signatures, docstrings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import spikelet
from stub_docs import STUB, documented

PACKAGE = Path(spikelet.__file__).parent


def test_names_and_signatures() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "spikelet._spikelet"],
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_docstrings() -> None:
    stub = STUB.read_text()
    assert documented(stub) == stub, "run: python tests/stub_docs.py && ruff format python"


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert set(spikelet.__all__) <= set(dir(spikelet))
