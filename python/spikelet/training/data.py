"""Text to training windows: read, tokenise once, map into memory, deal in a fixed order.

Text files (plain or ``.gz``) are split into documents at lines that hold only ``<|endoftext|>``.
Some documents are held out for validation. Both parts are stored as one stream of ids, each
document followed by the end-of-text id, under a name made from the contents of the files and the
tokenizer: a second run, or another model on the same text, finds them there.

Batches are a function of (seed, position): nothing has to be saved but the position.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from spikelet.training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
_SEPARATOR = f"\n{END_OF_TEXT}\n"
_FORMAT = 1  # part of the cache's name: raise it when the stored streams change


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such text file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; a name ending in ``.gz`` is unpacked."""
    raw = _read_bytes(path)
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not text.strip():
        raise DataError(f"{path}: holds no text")
    return text


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Read all files and split them into documents; empty ones are left out."""
    documents: list[str] = []
    for path in paths:
        parts = (read_text(path).replace("\r\n", "\n") + "\n").split(_SEPARATOR)
        parts[-1] = parts[-1].removesuffix("\n")
        documents += [part for part in parts if part.strip()]
    return documents


def split_documents(documents: Sequence[str], valid_every: int) -> tuple[list[str], list[str]]:
    """Hold out every ``valid_every``-th document for validation.

    With fewer than ``2 * valid_every`` documents the end of each is held out instead, about one
    part in ``valid_every``, cut at a line end where there is one.
    """
    if valid_every < 2:
        raise DataError(f"valid_every is {valid_every}; at least 2 is needed")
    if len(documents) >= 2 * valid_every:
        valid = list(documents[valid_every - 1 :: valid_every])
        train = [text for i, text in enumerate(documents) if i % valid_every != valid_every - 1]
        return train, valid
    train, valid = [], []
    for text in documents:
        cut = len(text) - max(1, len(text) // valid_every)
        cut = text.rfind("\n", cut // 2, cut) + 1 or cut
        train.append(text[:cut])
        valid.append(text[cut:])
    return [text for text in train if text], [text for text in valid if text]


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (GPT-2's splitting) with ``<|endoftext|>`` as token 0.

    Any text can be encoded, and decoding gives the same bytes back.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id of ``<|endoftext|>``."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    if found is None:
        raise DataError(f"the tokenizer has no {END_OF_TEXT} token, which separates documents")
    return int(found)


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


def _fingerprint(paths: Sequence[Path], tokenizer: Tokenizer, valid_every: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {valid_every} {len(paths)} ".encode())
    for path in paths:
        digest.update(hashlib.sha256(_read_bytes(path)).digest())
    digest.update(tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def _encode(tokenizer: Tokenizer, documents: Sequence[str], end: int) -> np.ndarray:
    kind = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    parts: list[np.ndarray] = []
    for start in range(0, len(documents), 256):
        batch = tokenizer.encode_batch_fast(
            list(documents[start : start + 256]), add_special_tokens=False
        )
        parts += [np.array([*one.ids, end], dtype=kind) for one in batch]
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def prepare(
    paths: Sequence[Path], tokenizer: Tokenizer, cache: Path, valid_every: int = 50
) -> TokenData:
    """Return the token streams of the files, from ``cache`` if they are there.

    Args:
        paths: text files, see ``read_documents``. All text is held in memory once, when it is
            tokenised.
        tokenizer: must have ``<|endoftext|>``.
        cache: folder for the streams; made when missing.
        valid_every: see ``split_documents``.
    """
    end = end_of_text_id(tokenizer)
    stem = cache / _fingerprint(paths, tokenizer, valid_every)
    meta_path = stem.with_suffix(".json")
    if not meta_path.exists():
        sizes = {}
        parts = split_documents(read_documents(paths), valid_every)
        for name, documents in zip(("train", "valid"), parts, strict=True):
            ids = _encode(tokenizer, documents, end)
            write_atomically(stem.with_suffix(f".{name}.npy"), partial(np.save, arr=ids))
            total = sum(len(text.encode()) for text in documents)
            sizes[name] = asdict(SplitSizes(len(documents), len(ids), total))
        # Last, because its presence says that the streams are whole.
        write_atomically(meta_path, lambda p: p.write_text(json.dumps(sizes, indent=1)))
    meta = json.loads(meta_path.read_text())
    return TokenData(
        np.load(stem.with_suffix(".train.npy"), mmap_mode="r"),
        np.load(stem.with_suffix(".valid.npy"), mmap_mode="r"),
        SplitSizes(**meta["train"]),
        SplitSizes(**meta["valid"]),
        tokenizer.get_vocab_size(),
        end,
    )


class Windows:
    """Training windows of ``ctx_len + 1`` ids, in an order fixed by the seed.

    Every epoch cuts the stream anew, at its own random offset, and deals the windows in its own
    random order. Window number ``n`` (counted over all epochs) is always the same.
    """

    def __init__(self, stream: np.ndarray, ctx_len: int, seed: int) -> None:
        # One window's worth of room is kept for the offset.
        self.per_epoch = (len(stream) - 1) // ctx_len - 1
        if self.per_epoch < 1:
            raise DataError(
                f"the training text has {len(stream)} tokens; windows of ctx_len {ctx_len} need at "
                f"least {2 * ctx_len + 1}"
            )
        self.stream, self.ctx_len, self.seed = stream, ctx_len, seed
        self._epoch, self._order, self._offset = -1, np.zeros(0, np.int64), 0

    def _window(self, number: int) -> np.ndarray:
        epoch, index = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._offset = int(random.integers(self.ctx_len))
            self._order, self._epoch = random.permutation(self.per_epoch), epoch
        start = self._offset + int(self._order[index]) * self.ctx_len
        return self.stream[start : start + self.ctx_len + 1]

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 ``[count, ctx_len]``, of windows ``first`` onwards."""
        rows = [self._window(first + i).astype(np.int64) for i in range(count)]
        ids = torch.from_numpy(np.stack(rows))
        return ids[:, :-1], ids[:, 1:]


def validation_batches(
    stream: np.ndarray, ctx_len: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the stream into windows that predict every id but the first exactly once."""
    ids = torch.from_numpy(stream.astype(np.int64))
    whole = (len(ids) - 1) // ctx_len
    inputs = ids[: whole * ctx_len].view(whole, ctx_len)
    targets = ids[1 : whole * ctx_len + 1].view(whole, ctx_len)
    for first in range(0, whole, batch_size):
        yield inputs[first : first + batch_size], targets[first : first + batch_size]
    if whole * ctx_len < len(ids) - 1:
        yield ids[None, whole * ctx_len : -1], ids[None, whole * ctx_len + 1 :]
