"""Where text comes from: files, lists and data set objects, all as a corpus of documents.

- Text files (plain or ``.gz``) are split into documents at lines that hold only ``<|endoftext|>``.
- ``.jsonl`` files (plain or ``.gz``) hold one object with a ``text`` per line: a document each.
- Lists of texts, and objects with a ``text`` column such as those of the ``datasets`` package, hold
  one document per row. Where the rows are single lines that keep their line end (as WikiText's),
  they are lines of one long text, and no end-of-text token is put between them.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikelet.training.data.hub import load_hub_dataset
from spikelet.training.errors import DataError

END_OF_TEXT = "<|endoftext|>"
_SEPARATOR = f"\n{END_OF_TEXT}\n"
_TEXT_SUFFIXES = (".txt", ".jsonl", ".gz", ".md")
_PIECE = 1 << 16
"""Characters of a long text that are held out, or trained on, together."""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be gone through any number of times."""

    documents: Callable[[], Iterator[str]]
    fingerprint: str
    """Of the contents."""
    separated: bool = True
    """An end-of-text token follows each document."""
    files: Sequence[Path] = ()
    """Plain files, which byte models read as they are."""


def read_bytes(path: Path) -> bytes:
    """Read a file; a name ending in ``.gz`` is unpacked."""
    raw = _raw_bytes(path)
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _raw_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such text file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; a name ending in ``.gz`` is unpacked."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise DataError(f"{path}: holds no text")
    return text


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Read all files and split them into documents; empty ones are left out."""
    return [text for path in paths for text in _file_documents(path)]


def _file_documents(path: Path) -> Iterator[str]:
    text = read_text(path).replace("\r\n", "\n")
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        parts = _jsonl(path, text)
    else:
        parts = (text + "\n").split(_SEPARATOR)
        parts[-1] = parts[-1].removesuffix("\n")
    return (part for part in parts if part.strip())


def _jsonl(path: Path, content: str) -> list[str]:
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
        found.append(_text_of(row, f"{path}, line {number}"))
    return found


def _text_of(row: object, where: str) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping) and isinstance(row.get("text"), str):
        return str(row["text"])
    found = f"keys {sorted(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
    raise DataError(f"{where}: holds {found}; needed is a text, or an object with a 'text'")


def deal_documents(documents: Iterable[str], valid_every: int) -> Iterator[tuple[bool, str]]:
    """Go through the documents, with True for those held out: see ``split_documents``."""
    if valid_every < 2:
        raise DataError(f"valid_every is {valid_every}; at least 2 is needed")
    rest = iter(documents)
    first = list(itertools.islice(rest, 2 * valid_every))
    if len(first) == 2 * valid_every:
        for index, text in enumerate(itertools.chain(first, rest)):
            yield index % valid_every == valid_every - 1, text
        return
    for text in first:
        cut = len(text) - max(1, len(text) // valid_every)
        cut = text.rfind("\n", cut // 2, cut) + 1 or cut
        for held_out, part in ((False, text[:cut]), (True, text[cut:])):
            if part:
                yield held_out, part


def split_documents(documents: Sequence[str], valid_every: int) -> tuple[list[str], list[str]]:
    """Hold out every ``valid_every``-th document for validation.

    With fewer than ``2 * valid_every`` documents the end of each is held out instead, about one
    part in ``valid_every``, cut at a line end where there is one.
    """
    dealt = list(deal_documents(documents, valid_every))
    return [text for held, text in dealt if not held], [text for held, text in dealt if held]


def as_corpus(source: object) -> Corpus:
    """Adapt what ``load_tokens`` accepts, but for a set of several splits."""
    if isinstance(source, Path):
        return _files([source])
    if isinstance(source, str):
        raise TypeError("a name is looked up by find_source")
    if isinstance(source, list | tuple):
        paths = _as_paths(source)
        if paths:
            return _files(paths)
    return _rows(source)


def _as_paths(items: Sequence[object]) -> list[Path]:
    """Return the items as paths if all are: Path objects, or names of existing text files."""
    texts = (item for item in items if not isinstance(item, Path))
    if all(isinstance(text, str) and _is_file_name(text) for text in texts):
        return [Path(str(item)) for item in items]
    return []


def _is_file_name(text: str) -> bool:
    return len(text) < 1000 and text.endswith(_TEXT_SUFFIXES) and Path(text).is_file()


def _files(paths: Sequence[Path]) -> Corpus:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(_raw_bytes(path)).digest() + path.suffix.encode())
    return Corpus(lambda: iter(read_documents(paths)), digest.hexdigest(), files=tuple(paths))


def _rows(source: object) -> Corpus:
    texts = _row_reader(source)
    first = list(itertools.islice((text for text in texts() if text.strip()), 100))
    if not first:
        raise DataError(f"the data set ({type(source).__name__}) holds no text")
    lines = all(text.find("\n") == len(text) - 1 for text in first)

    def documents() -> Iterator[str]:
        return _joined(texts()) if lines else _not_empty(texts())

    digest = hashlib.sha256()
    for text in documents():
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return Corpus(documents, digest.hexdigest(), separated=not lines)


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if text.strip())


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Put lines together to pieces of some size; an empty row was an empty line."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line or "\n")
        size += len(line)
        if size >= _PIECE:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _row_reader(source: Any) -> Callable[[], Iterator[str]]:
    """Return a function that goes through the texts of a data set object, in batches if it can."""
    name = type(source).__name__
    columns = getattr(source, "column_names", None)
    if isinstance(columns, list) and "text" not in columns:
        raise DataError(f"the data set has columns {columns}; needed is 'text'")
    if isinstance(columns, list) and hasattr(source, "iter"):
        return lambda: (
            str(text) for batch in source.iter(batch_size=1000) for text in batch["text"]
        )
    if isinstance(source, Mapping) and "text" in source:
        return lambda: (_text_of(row, name) for row in source["text"])
    if not isinstance(source, Mapping) and (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        return lambda: (_text_of(row, f"{name}, row {i}") for i, row in enumerate(source))
    raise DataError(
        f"{name} is no source of text; needed are text files, a list of texts, or an object with a "
        "'text' column"
    )


def find_source(source: object) -> tuple[object, object | None]:
    """Return a source and the one for validation that belongs to it, if any.

    A name is that of a file, else of a data set on the hub (``name`` or ``name:configuration``); a
    set of splits gives its ``train`` and its ``validation``.
    """
    if isinstance(source, str):
        path = Path(source)
        if path.exists() or source.endswith(_TEXT_SUFFIXES) or source[:1] in "./~\\":
            return path.expanduser(), None
        source = load_hub_dataset(source)
    if isinstance(source, Mapping) and "train" in source:
        names = (name for name in ("validation", "valid", "val") if name in source)
        return source["train"], next((source[name] for name in names), None)
    return source, None
