"""Text tokenised once, and then mapped into memory.

Both parts of a corpus are stored as one stream of ids each, every document followed by the
end-of-text id, under a name made from the contents and the tokenizer: a second run, or another
model on the same text, finds them there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from spikelet._models import home
from spikelet.training.data.sources import (
    Corpus,
    as_corpus,
    deal_documents,
    find_source,
    read_bytes,
)
from spikelet.training.data.tokenizers import ByteTokenizer, TextTokenizer, as_tokenizer
from spikelet.training.errors import DataError

_FORMAT = 2  # part of the cache's name: raise it when the stored streams change
_SPLITS = ("train", "valid")
_BATCH = 256
"""Documents that are tokenised at once, on all cores."""


@dataclass(frozen=True)
class SplitSizes:
    """How much text one split holds."""

    documents: int
    tokens: int
    """Ids in the stream, end-of-text included."""
    bytes: int
    """UTF-8 bytes of the documents' text, without separators."""


@dataclass(frozen=True)
class TokenData:
    """The two id streams of a corpus, mapped into memory (uint16 or uint32)."""

    train: np.ndarray
    valid: np.ndarray
    train_sizes: SplitSizes
    valid_sizes: SplitSizes
    vocab_size: int
    end_of_text: int


def prepare(
    paths: Sequence[Path], tokenizer: Tokenizer, cache: Path, valid_every: int = 50
) -> TokenData:
    """Return the token streams of text files, from ``cache`` if they are there.

    Args:
        paths: text files, see ``read_documents``.
        tokenizer: must have ``<|endoftext|>``.
        cache: folder for the streams; made when missing.
        valid_every: see ``split_documents``.
    """
    return load_tokens(list(paths), tokenizer, cache=cache, valid_every=valid_every)


def load_tokens(
    source: object,
    tokenizer: object,
    *,
    cache: Path | None = None,
    valid_every: int = 50,
    val_source: object = None,
) -> TokenData:
    """Return the token streams of any source of text, from the cache if they are there.

    Args:
        source: a text file or several (``.txt``, ``.jsonl``, each also ``.gz``), a list of texts, a
            data set object with a ``text`` column or a dictionary of such with ``train`` and
            perhaps ``validation``, the name of a data set on the hub, or a ``TokenData``.
        tokenizer: what ``as_tokenizer`` takes. ``"bytes"`` reads files of any kind as they are.
        cache: folder for the streams; None: ``cache`` in the home.
        valid_every: hold out every so-maniest document for validation, see ``split_documents``; 0
            holds out nothing.
        val_source: text to validate on, instead of held out documents.
    """
    if isinstance(source, TokenData):
        return _with_validation(source, tokenizer, cache, val_source)
    kind = as_tokenizer(tokenizer, source)
    train, own = find_source(source)
    if val_source is not None:
        own = find_source(val_source)[0]
    corpus = as_corpus(train)
    held = None if own is None else as_corpus(own)
    stem = (home() / "cache" if cache is None else cache) / _name(corpus, held, kind, valid_every)
    data = _open(stem, kind)
    if data is None:
        _store(stem, _deal(corpus, held, kind, valid_every), kind)
        data = _open(stem, kind)
    if data is None:
        raise DataError(f"{stem}: the stored streams cannot be read back")
    return data


def _with_validation(
    data: TokenData, tokenizer: object, cache: Path | None, val_source: object
) -> TokenData:
    if val_source is None:
        return data
    other = (
        val_source
        if isinstance(val_source, TokenData)
        else load_tokens(val_source, tokenizer, cache=cache, valid_every=0)
    )
    return replace(data, valid=other.train, valid_sizes=other.train_sizes)


def _name(corpus: Corpus, held: Corpus | None, tokenizer: TextTokenizer, valid_every: int) -> str:
    parts = [_FORMAT, corpus.fingerprint, held.fingerprint if held else valid_every, tokenizer.hash]
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


_Piece = tuple[bool, np.ndarray, int]
"""Whether it is held out, its ids, and the bytes of its text."""


def _deal(
    corpus: Corpus, held: Corpus | None, tokenizer: TextTokenizer, valid_every: int
) -> Iterator[_Piece]:
    if held is None and valid_every:
        return _pieces(corpus, tokenizer, valid_every)
    train = _pieces(corpus, tokenizer, 0)
    if held is None:
        return train
    rest = ((True, ids, size) for _, ids, size in _pieces(held, tokenizer, 0))
    return itertools.chain(train, rest)


def _pieces(corpus: Corpus, tokenizer: TextTokenizer, valid_every: int) -> Iterator[_Piece]:
    raw = isinstance(tokenizer, ByteTokenizer) and [p for p in corpus.files if not _is_jsonl(p)]
    if raw and len(raw) == len(corpus.files):
        yield from _byte_pieces(raw, valid_every)
        return
    kind = _id_type(tokenizer)
    end = [tokenizer.eos_id] if corpus.separated else []
    texts = corpus.documents()
    dealt = deal_documents(texts, valid_every) if valid_every else ((False, t) for t in texts)
    while batch := list(itertools.islice(dealt, _BATCH)):
        rows = tokenizer.encode_batch([text for _, text in batch])
        for (held_out, text), ids in zip(batch, rows, strict=True):
            yield held_out, np.array([*ids, *end], dtype=kind), len(text.encode())


def _byte_pieces(paths: Sequence[Path], valid_every: int) -> Iterator[_Piece]:
    """Deal files as they are, the end of each held out, cut at a line end where there is one."""
    for path in paths:
        data = read_bytes(path)
        cut = len(data)
        if valid_every:
            cut -= max(1, len(data) // valid_every)
            cut = data.rfind(b"\n", cut // 2, cut) + 1 or cut
        for held_out, part in ((False, data[:cut]), (True, data[cut:])):
            yield held_out, np.frombuffer(part, np.uint8).astype(np.uint16), len(part)


def _is_jsonl(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _id_type(tokenizer: TextTokenizer) -> type[np.uint16 | np.uint32]:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _store(stem: Path, pieces: Iterator[_Piece], tokenizer: TextTokenizer) -> None:
    """Write both streams piece by piece, then their sizes: those say that the streams are whole."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=stem.parent, prefix=f".{stem.name}."))
    counts = {name: [0, 0, 0] for name in _SPLITS}
    try:
        with (folder / "train").open("wb") as train, (folder / "valid").open("wb") as valid:
            for held_out, ids, size in pieces:
                ids.tofile(valid if held_out else train)
                total = counts[_SPLITS[held_out]]
                for i, more in enumerate((1, len(ids), size)):
                    total[i] += more
        if not counts["train"][1]:
            raise DataError("the source holds no text to train on")
        sizes = {name: asdict(SplitSizes(*counts[name])) for name in _SPLITS}
        (folder / "json").write_text(json.dumps(sizes, indent=1))
        for name in (*_SPLITS, "json"):
            (folder / name).chmod(0o644)
            (folder / name).replace(_part(stem, name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(stem: Path, name: str) -> Path:
    return stem.parent / (f"{stem.name}.json" if name == "json" else f"{stem.name}.{name}.bin")


def _open(stem: Path, tokenizer: TextTokenizer) -> TokenData | None:
    """Map what is stored; None where there is nothing, or not all of it."""
    kind = np.dtype(_id_type(tokenizer))
    try:
        meta = json.loads(_part(stem, "json").read_text())
        sizes = [SplitSizes(**meta[name]) for name in _SPLITS]
        files = [_part(stem, name) for name in _SPLITS]
        for path, size in zip(files, sizes, strict=True):
            if path.stat().st_size != size.tokens * kind.itemsize:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    train, valid = (
        np.memmap(path, dtype=kind, mode="r") if size.tokens else np.zeros(0, kind)
        for path, size in zip(files, sizes, strict=True)
    )
    return TokenData(train, valid, sizes[0], sizes[1], tokenizer.vocab_size, tokenizer.eos_id)
