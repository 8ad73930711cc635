"""What a run writes down: rows of ``train_log.csv``, firing rates by layer, samples, TensorBoard.

A row is a dataclass, whose fields are the columns. Each row is on its way to the disk when ``log``
returns, so that the file can be read while the run goes on.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spikelet.errors import OptionError
from spikelet.training.errors import cannot_write
from spikelet.training.files import write_atomically, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


@dataclass
class LogFieldnames:
    """Columns of ``train_log.csv``; define a dataclass like this for columns of your own."""

    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None


@dataclass
class LanguageModelLog:
    """A row of a language model's log; what was not measured at that step is empty."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Seen since the beginning."""
    seconds: float | None = None
    """Spent in training steps, over all resumes."""
    train_loss: float | None = None
    """Mean cross entropy since the last row, nats per token."""
    val_loss: float | None = None
    perplexity: float | None = None
    """``exp(train_loss)``."""
    bits_per_byte: float | None = None
    """``train_loss`` in bits, over the bytes of text that a token stands for on average."""
    val_bits_per_byte: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Of the whole gradient, before clipping."""
    tokens_per_second: float | None = None
    firing_rate: float | None = None
    """Share of ones among all neurons."""
    relu2_density: float | None = None
    """Share of values above zero behind the squared ReLU."""


class CSVLogger:
    """Appends rows to a CSV file.

    Args:
        path: of the file; a new one gets a header. None writes nothing.
        fieldnames: the columns.
    """

    def __init__(self, path: Path | None, fieldnames: Sequence[str]) -> None:
        self.path, self.fieldnames = path, list(fieldnames)
        if path is not None and not path.exists():
            self._write(dict(zip(self.fieldnames, self.fieldnames, strict=True)))

    def log(self, row: object) -> None:
        """Append a row: an instance of the log dataclass, or a mapping with some of its fields."""
        values = as_dict(row)
        unknown = [name for name in values if name not in self.fieldnames]
        if unknown:
            raise OptionError(
                f"the log has no column {unknown[0]!r} (it has {', '.join(self.fieldnames)}); "
                "log_fieldnames= takes a dataclass with others"
            )
        self._write(values)

    def _write(self, values: Mapping[str, object]) -> None:
        if self.path is None:
            return
        try:
            # Opened for each row: nothing to close, and nothing is held back in a buffer.
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.fieldnames)
                writer.writerow({name: _text(value) for name, value in values.items()})
        except OSError as error:
            raise cannot_write(self.path, error) from error


def as_dict(row: object) -> dict[str, Any]:
    """Return the fields of a log dataclass, or the mapping itself."""
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        # Not asdict: it would copy tensors.
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return dict(row)  # type: ignore[call-overload, no-any-return]


def _text(value: Any) -> object:
    """A number as text; tensors of one element count as numbers."""
    if hasattr(value, "item"):
        value = value.item()
    return f"{value:.8g}" if isinstance(value, float) else value


def trim_csv(path: Path, last_step: int, fieldnames: Sequence[str] | None = None) -> None:
    """Drop the rows of steps behind ``last_step``, which are run again, and a torn last row.

    The file gets the columns ``fieldnames``, if given; without a column ``step`` all rows stay.
    """
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if _is_kept(row, last_step)]
        names = list(fieldnames or reader.fieldnames or [])

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def _is_kept(row: Mapping[str, str | None], last_step: int) -> bool:
    if None in row.values():  # fewer cells than columns: torn
        return False
    try:
        return "step" not in row or int(row["step"] or 0) <= last_step
    except ValueError:
        return False


def append_json(path: Path, value: Mapping[str, object]) -> None:
    """Append one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def trim_json_lines(path: Path, last_step: int) -> None:
    """Drop lines of steps behind ``last_step``, and a torn last line."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = "".join(line + "\n" for line in lines if _json_step(line) <= last_step)
    write_text(path, kept)


def _json_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Writes the numbers of rows for TensorBoard, one chart per column."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError(
                "tensorboard=True needs the package tensorboard: "
                "pip install 'spikelet[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def log(self, row: object, step: int, group: str = "") -> None:
        """Write all numbers of a row but the step."""
        for name, value in as_dict(row).items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{group}{name}", value, step)

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()


def columns(fields: type | Iterable[str]) -> list[str]:
    """Return the column names of a log dataclass, or of a list of names."""
    if isinstance(fields, type):
        if not dataclasses.is_dataclass(fields):
            raise OptionError(f"log_fieldnames is {fields!r}; a dataclass is needed")
        return [field.name for field in dataclasses.fields(fields)]
    return list(fields)
