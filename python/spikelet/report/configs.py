"""The configurations of runs: read, flattened, and held against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Section of the page, and the files that may hold it: the first that is there counts.
_SECTIONS = {
    "Model": ("config.json", "../config.json"),
    "Training": ("trainer_config.json",),
    "Run": ("external_config.json",),
}
# What differs between any two runs and says nothing, or is shown elsewhere.
_LEFT_OUT = {"Training": ("name",), "Run": ("series",)}
_LONGEST = 200


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none or it is being written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations by section of a run whose files lie in `folder`."""
    return {
        section: next(filter(None, (read_object(folder / name) for name in names)), {})
        for section, names in _SECTIONS.items()
    }


def compare(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every key of every section, with its value in each run and whether the values differ.

    A key that a run lacks is None there, and that is a difference.
    """
    sections = []
    for section in _SECTIONS:
        left_out = _LEFT_OUT.get(section, ())
        flat = [
            flatten({k: v for k, v in run.get(section, {}).items() if k not in left_out})
            for run in runs
        ]
        rows = []
        for key in dict.fromkeys(key for values in flat for key in values):
            values = [values.get(key) for values in flat]
            rows.append({"key": key, "values": values, "differs": len(set(values)) > 1})
        if rows:
            sections.append({"title": section, "rows": rows})
    return sections


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, and values as short texts."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
