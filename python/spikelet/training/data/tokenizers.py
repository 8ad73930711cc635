"""What turns text into ids in training; all kinds behind one small interface.

``as_tokenizer`` adapts what users have: an object of the packages ``tokenizers`` or
``transformers``, anything with ``encode``, ``decode``, ``vocab_size`` and ``eos_token_id``, files,
``"bytes"`` and ``"chars"``. What ``save`` writes is what the engine loads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from spikelet._models import local_models
from spikelet.training.data.hub import load_hub_tokenizer
from spikelet.training.data.sources import (
    END_OF_TEXT,
    as_corpus,
    deal_documents,
    find_source,
    read_bytes,
)
from spikelet.training.errors import DataError
from spikelet.training.files import write_atomically, write_text

_END_NAMES = (END_OF_TEXT, "</s>", "[SEP]")
_GPT2_FILES = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("gpt2_vocab.json", "gpt2_merges.txt"),
)
_NUL = "\0"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
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


def train_on_source(source: object, vocab_size: int, valid_every: int) -> Tokenizer:
    """Train a tokenizer on the part of a source that ``load_tokens`` trains on."""
    train, valid = find_source(source)
    documents = as_corpus(train).documents()
    if valid is None and valid_every:
        dealt = deal_documents(documents, valid_every)
        documents = (text for held_out, text in dealt if not held_out)
    return train_tokenizer(documents, vocab_size)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id of ``<|endoftext|>``, or of what other families call so."""
    for name in _END_NAMES:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    raise DataError(f"the tokenizer has no {END_OF_TEXT} token, which separates documents")


class TextTokenizer(ABC):
    """Text to ids and back, as training needs it."""

    vocab_size: int
    """Ids are below it."""
    eos_id: int
    """Stands behind every document."""
    hash: str
    """Equal hashes mean equal ids."""
    tokenizer_class: str | None = None
    """What ``config.json`` of a model folder says of it, where no file does."""

    can_save = True
    """Whether there are files to be written from which it can be made anew."""

    def __init__(self) -> None:
        self.pad_token: object = None
        """May be anything, also the end-of-text token: padding is left out of the loss by place."""

    @property
    def eos_token_id(self) -> int:
        """``eos_id`` under the name that ``transformers`` gives it."""
        return self.eos_id

    @property
    def eos_token(self) -> str:
        """The name of the end-of-text token."""
        return END_OF_TEXT

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, without any added."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; nothing for special ones."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that the engine and ``load_tokenizer`` read."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text])[0]

    def save_pretrained(self, folder: Path | str) -> None:
        """``save`` under the name that ``transformers`` gives it."""
        self.save(Path(folder))


class FileTokenizer(TextTokenizer):
    """A ``tokenizers.Tokenizer``, kept in ``tokenizer.json``."""

    def __init__(self, backend: Tokenizer, eos_id: int | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.vocab_size = backend.get_vocab_size()
        self.eos_id = end_of_text_id(backend) if eos_id is None else eos_id
        self.hash = _sha256(backend.to_str(), str(self.eos_id))

    @property
    def eos_token(self) -> str:  # noqa: D102 - as above
        return str(self.backend.id_to_token(self.eos_id))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:  # noqa: D102
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        return str(self.backend.decode(list(ids)))

    def save(self, folder: Path) -> None:  # noqa: D102
        write_atomically(folder / "tokenizer.json", lambda path: self.backend.save(str(path)))


class ObjectTokenizer(TextTokenizer):
    """Any object with ``encode``, ``decode``, ``vocab_size`` and ``eos_token_id``."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        name = type(wrapped).__name__
        missing = [key for key in ("encode", "decode", "vocab_size") if not hasattr(wrapped, key)]
        if missing:
            raise DataError(f"{name} is no tokenizer: it has no {', '.join(missing)}")
        self.wrapped, self.eos_id = wrapped, _end_of(wrapped)
        self.can_save = hasattr(wrapped, "save_pretrained")
        self.vocab_size = max(int(wrapped.vocab_size), self.eos_id + 1)
        self._plain = _accepts(wrapped.encode, "add_special_tokens")
        self.hash = _sha256(name, self._vocabulary(), self._probe(), str(self.eos_id))

    def _probe(self) -> str:
        """Ids of a text, which tell tokenizers of equal vocabulary apart."""
        try:
            return str(self.encode(_PROBE))
        except Exception:  # noqa: BLE001 - a tokenizer of few characters may refuse in any way
            return ""

    def _vocabulary(self) -> str:
        if hasattr(self.wrapped, "get_vocab"):
            return json.dumps(self.wrapped.get_vocab(), sort_keys=True)
        return json.dumps([self.wrapped.decode([i]) for i in range(int(self.wrapped.vocab_size))])

    @property
    def eos_token(self) -> str:  # noqa: D102
        return str(getattr(self.wrapped, "eos_token", END_OF_TEXT))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:  # noqa: D102
        options = {"add_special_tokens": False} if self._plain else {}
        return [list(self.wrapped.encode(text, **options)) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        return str(self.wrapped.decode(list(ids)))

    def save(self, folder: Path) -> None:  # noqa: D102
        if not self.can_save:
            raise DataError(
                f"the tokenizer ({type(self.wrapped).__name__}) has no save_pretrained; a run with "
                "it has to be loaded with tokenizer="
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.wrapped.save_pretrained(str(folder))


class ByteTokenizer(TextTokenizer):
    """A token per byte; byte 0 stands between documents."""

    vocab_size, eos_id, hash, tokenizer_class = 256, 0, "bytes", "bytes"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:  # noqa: D102
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        return bytes(i for i in ids if i != self.eos_id).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:  # noqa: D102
        _save_class(folder, "bytes")


class CharTokenizer(TextTokenizer):
    """A token per character of a closed list; the first, NUL, stands between documents."""

    eos_id, tokenizer_class = 0, "chars"

    def __init__(self, characters: Sequence[str]) -> None:
        super().__init__()
        self.characters = list(characters)
        self.vocab_size = len(self.characters)
        self._ids = {character: i for i, character in enumerate(self.characters)}
        self.hash = _sha256("chars", json.dumps(self.characters))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """Make the list from all characters of the texts, sorted."""
        found: set[str] = set()
        for text in texts:
            found.update(text)
        return cls([_NUL, *sorted(found - {_NUL})])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:  # noqa: D102
        try:
            return [[self._ids[character] for character in text] for text in texts]
        except KeyError as error:
            raise DataError(
                f"character {error.args[0]!r} is not among the {self.vocab_size} of the tokenizer"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        return "".join(self.characters[i] for i in ids if i != self.eos_id)

    def save(self, folder: Path) -> None:  # noqa: D102
        write_text(folder / "chars.json", json.dumps(self.characters))
        _save_class(folder, "chars")


def as_tokenizer(tokenizer: object, source: object = None) -> TextTokenizer:
    """Adapt a tokenizer.

    Args:
        tokenizer: an object of ``tokenizers`` or ``transformers``, or one with their methods;
            ``"bytes"``; ``"chars"``; a folder or file, see ``load_tokenizer``; the name of a model
            that ``spikelet models`` lists, or of a tokenizer on the hub.
        source: the text whose characters ``"chars"`` has, as ``load_tokens`` takes it.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if isinstance(tokenizer, Tokenizer):
        return FileTokenizer(tokenizer)
    if isinstance(tokenizer, Path):
        return load_tokenizer(tokenizer)
    if isinstance(tokenizer, str):
        return _by_name(tokenizer, source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        eos = getattr(tokenizer, "eos_token_id", None)
        return FileTokenizer(backend, None if eos is None else int(eos))
    return ObjectTokenizer(tokenizer)


def _by_name(name: str, source: object) -> TextTokenizer:
    if name == "bytes":
        return ByteTokenizer()
    if name == "chars":
        if source is None:
            raise DataError("'chars' needs the text whose characters it has: as_tokenizer's source")
        train, valid = find_source(source)
        parts = [part for part in (train, valid) if part is not None]
        return CharTokenizer.from_texts(text for p in parts for text in as_corpus(p).documents())
    if Path(name).exists() or name.endswith((".json", ".txt")):
        return load_tokenizer(Path(name))
    if name in local_models():
        return load_tokenizer(local_models()[name])
    return as_tokenizer(load_hub_tokenizer(name))


def load_tokenizer(path: Path) -> TextTokenizer:
    """Load a tokenizer from a file, or from a folder such as a model's or ``training/tokenizer``.

    Known are ``tokenizer.json``, GPT-2's two files under any of their names, ``chars.json``, and a
    ``"tokenizer_class": "bytes"`` in ``config.json`` or ``tokenizer_config.json``.
    """
    if not path.exists():
        raise DataError(f"{path}: no such tokenizer file or folder")
    folder = path if path.is_dir() else path.parent
    names = {path.name} if path.is_file() else {entry.name for entry in path.iterdir()}
    for name in ("tokenizer.json", "20B_tokenizer.json"):
        if name in names:
            return _from_json(folder / name)
    for pair in _GPT2_FILES:
        if set(pair) & names and all((folder / name).is_file() for name in pair):
            return FileTokenizer(_gpt2(*(folder / name for name in pair)))
    if "chars.json" in names:
        return CharTokenizer(json.loads(read_bytes(folder / "chars.json")))
    if path.is_file():
        return _from_json(path)
    if "bytes" in (_class_in(folder / n) for n in ("config.json", "tokenizer_config.json")):
        return ByteTokenizer()
    raise DataError(f"{path}: holds no tokenizer that can be trained with")


def _from_json(path: Path) -> FileTokenizer:
    try:
        backend = Tokenizer.from_str(read_bytes(path).decode("utf-8"))
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error
    return FileTokenizer(backend)


def _gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    try:
        backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # as above
        raise DataError(f"{vocabulary}: not GPT-2's vocabulary: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return backend


def _save_class(folder: Path, name: str) -> None:
    write_text(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": name}) + "\n")


def _class_in(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return None


_PROBE = "The quick brown fox, 1234 times: naïve café!\n\tdef f(x):  return x**2  # 日本語 🦀"


def _end_of(wrapped: object) -> int:
    for key in ("eos_token_id", "eos_id", "sep_token_id"):
        found = getattr(wrapped, key, None)
        if found is not None:
            return int(found)
    raise DataError(
        f"the tokenizer ({type(wrapped).__name__}) has no eos_token_id, the token that separates "
        "documents"
    )


def _accepts(function: object, keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return keyword in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _sha256(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()
