"""The script that refreshes the figures of docs/evaluation.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spikelet.evaluation.blimp import FIELDS

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "evaluation.md"


def run_script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "evaluate_bundled.py"
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    items = {
        "lambada_test.jsonl": [{"text": "The fox ran"}] * 3,
        "piqa_valid.jsonl": [{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}] * 3,
        "blimp.jsonl.gz": [
            {
                "UID": f"{term}_{n}",
                "linguistics_term": term,
                "sentence_good": "A",
                "sentence_bad": "b",
            }
            for term in FIELDS
            for n in range(2)
            for _ in range(3)
        ],
    }
    for name, lines in items.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_figures_are_replaced_and_nothing_else(data: Path, bytes_folder: Path) -> None:
    page = data / "page.md"
    page.write_text(PAGE.read_text())
    words = [data, "--model", bytes_folder, "--limit", "2", "--page", page]
    assert run_script(*words).returncode == 0
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.startswith("| lambada | perplexity | 2 |")]
    assert [line for line in lines if line.startswith("| blimp | acc | 52 |")]
    assert [line for line in lines if line.startswith("| binding | 4 |")]
    marks = [at for at, line in enumerate(lines) if line.startswith("<!-- ")]
    old = PAGE.read_text().splitlines()
    old_marks = [at for at, line in enumerate(old) if line.startswith("<!-- ")]
    assert lines[: marks[0] + 1] == old[: old_marks[0] + 1]
    assert lines[marks[1] :] == old[old_marks[1] :]


def test_a_page_without_the_marks_is_refused(data: Path) -> None:
    page = data / "page.md"
    page.write_text("nothing")
    run = run_script(data, "--page", page)
    assert run.returncode == 1
    assert "needs the lines" in run.stderr
    assert page.read_text() == "nothing"
