"""The page's table of sampling options is the engine's."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import spikelet

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"


def value(text: str) -> Any:
    """The Python value that a cell of the table shows; names such as `openai` are themselves."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def test_options_and_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert {name: value(default) for name, default in rows} == spikelet.default_options()
