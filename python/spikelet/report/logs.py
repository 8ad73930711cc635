"""Reading what a run writes while it may still be writing: CSV logs and JSON lines.

Nothing here fails on a broken line. A log is appended to by another process, may end in the middle
of a line, may hold NaN, or columns that another program named; what cannot be used is left out, and
a note says so.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Column = list[float | None]

# Names that older versions and other programs gave to the same thing.
_ALIASES = {
    "loss": "train_loss",
    "valid_loss": "val_loss",
    "valid_bits_per_byte": "val_bits_per_byte",
    "lr": "learning_rate",
    "iteration": "step",
}


@dataclass
class Table:
    """Numeric columns of equal length. None is an empty cell, or a number that is none."""

    columns: dict[str, Column] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def present(self, name: str) -> list[float]:
        """The numbers of a column in order, without the empty cells."""
        return [value for value in self.columns.get(name, ()) if value is not None]


def read_table(path: Path) -> Table:
    """Reads a log; a missing or empty file is a table without columns.

    A last line without a newline is half written and left out.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Table()
    # A full disk or a crash can leave zero bytes in a file.
    text = data[: data.rfind(b"\n") + 1].decode("utf-8-sig", errors="replace").replace("\0", "")
    rows = csv.reader(io.StringIO(text))
    header = [name.strip() for name in next(rows, [])]
    cells: list[list[str]] = []
    broken = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error:
            broken += 1
            continue
        if len(row) > len(header) or (row and not any(map(_is_number, row))):
            broken += 1
        elif row:
            cells.append(row + [""] * (len(header) - len(row)))
    table = Table()
    if broken:
        table.notes.append(f"{path.name}: {broken} lines could not be read")
    for index, name in enumerate(header):
        column = [_number(row[index]) for row in cells]
        if name and any(value is not None for value in column):
            table.columns.setdefault(name, [_finite(value) for value in column])
            table.notes.extend(_where_not_finite(name, column, cells, header))
    return table


def _is_number(cell: str) -> bool:
    return _number(cell) is not None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _where_not_finite(
    name: str, column: Column, cells: Sequence[Sequence[str]], header: Sequence[str]
) -> list[str]:
    bad = [at for at, value in enumerate(column) if value is not None and not math.isfinite(value)]
    if not bad:
        return []
    place = f"row {bad[0] + 1}"
    if "step" in header:
        place = f"step {cells[bad[0]][header.index('step')]}"
    times = "" if len(bad) == 1 else f", {len(bad)} times in all"
    return [f"{name} is {column[bad[0]]} at {place}{times}"]


def training_table(path: Path) -> Table:
    """Reads `train_log.csv` under our own names of columns.

    Where the steps of a language model go back, a run was resumed from an older checkpoint: what
    came after that checkpoint was done again, and its first version is dropped.
    """
    table = read_table(path)
    for old, new in _ALIASES.items():
        if old in table.columns and new not in table.columns:
            table.columns[new] = table.columns.pop(old)
    if {"step", "tokens", "train_loss"} <= table.columns.keys():
        keep = _without_repeated(table.columns["step"])
        table.columns = _rows(table.columns, keep)
    return table


def _without_repeated(steps: Column) -> list[int]:
    kept: list[tuple[float, int]] = []
    for row, step in enumerate(steps):
        if step is None:
            continue
        # Two rows of one step in succession are two parts of it, such as a late validation.
        if kept and kept[-1][0] > step:
            while kept and kept[-1][0] >= step:
                kept.pop()
        kept.append((step, row))
    return [row for _, row in kept]


def _rows(columns: Mapping[str, Column], rows: Sequence[int]) -> dict[str, Column]:
    return {name: [column[row] for row in rows] for name, column in columns.items()}


def thin(
    columns: Mapping[str, Column], limit: int = 3000, whole: Sequence[str] = ()
) -> dict[str, Column]:
    """At most about `limit` rows of a long log, chosen so that a plot looks the same.

    From every stretch of rows those with the least and the greatest value of each column stay, so
    no spike is lost. Rows with a value in one of the columns `whole` stay in any case.
    """
    count = len(next(iter(columns.values()), ()))
    if count <= limit:
        return dict(columns)
    sparse = [columns[name] for name in whole if name in columns]
    dense = [column for name, column in columns.items() if name not in whole]
    stretch = max(1, math.ceil(count * 2 * len(dense) / limit))
    keep = {0, count - 1}
    keep.update(row for column in sparse for row, value in enumerate(column) if value is not None)
    for start in range(0, count, stretch):
        for column in dense:
            known = [
                (value, row)
                for row, value in enumerate(column[start : start + stretch], start)
                if value is not None
            ]
            if known:
                keep.update((min(known)[1], max(known)[1]))
    return _rows(columns, sorted(keep))


def rounded(column: Sequence[float | None], digits: int = 6) -> list[float | int | None]:
    """The numbers with so many digits, integers as such: what a page needs, in few bytes."""
    return [None if value is None else _short(value, digits) for value in column]


def _short(value: float, digits: int) -> float | int:
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{digits}g}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line; broken or half-written lines are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
