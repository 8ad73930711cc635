"""Items of a task from JSON lines, gzipped or not. What is wrong is named by file and line."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from spikelet.errors import FormatError, OptionError

T = TypeVar("T")


class Item:
    """One line of a file: an object whose values are asked for by name and type."""

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self.place = place
        self._values = values

    def text(self, key: str, default: str | None = None) -> str:
        """A text; without a default it must be there and not be empty."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or (default is None and not value):
            raise FormatError(f"{self.place}: needs a text '{key}', {self._found(key)}")
        return value

    def choice(self, key: str, count: int) -> int:
        """A number from 0 to `count` - 1."""
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            wanted = f"needs a number '{key}' from 0 to {count - 1}"
            raise FormatError(f"{self.place}: {wanted}, {self._found(key)}")
        return value

    def _found(self, key: str) -> str:
        if key in self._values:
            return f"found {json.dumps(self._values[key], ensure_ascii=False)[:60]}"
        return f"found only {', '.join(map(repr, self._values)) or 'an empty object'}"


def read_items(path: str | Path) -> list[Item]:
    """The items of a file, or of all `.jsonl` and `.jsonl.gz` files of a folder.

    Raises:
        FormatError: the file is no JSON lines, broken, or holds nothing.
        OSError: it cannot be read.
    """
    source = Path(path)
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.name.endswith(SUFFIXES))
    items = [item for file in files for item in _lines(file)]
    if not items:
        raise FormatError(f"{path}: no items, needed JSON lines")
    return items


SUFFIXES = (".jsonl", ".jsonl.gz")


def _lines(file: Path) -> Iterator[Item]:
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise FormatError(f"{file}: broken gzip data: {error}") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise FormatError(f"{place}: not UTF-8 at byte {error.start} of the line") from None
        except ValueError as error:
            raise FormatError(f"{place}: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise FormatError(f"{place}: needs an object, found {type(values).__name__}")
        yield Item(place, values)


def pick(items: Sequence[T], limit: int | None, seed: int | None) -> list[T]:
    """The first `limit` items; with a seed as many drawn from all, in the order of the file."""
    if limit is not None and limit < 1:
        raise OptionError(f"option `limit`: needs a number of at least 1, not {limit}")
    if limit is None or limit >= len(items):
        return list(items)
    if seed is None:
        return list(items[:limit])
    chosen = random.Random(seed).sample(range(len(items)), limit)  # noqa: S311 - not a secret
    return [items[index] for index in sorted(chosen)]
