"""Objects that look like those of the packages `datasets` and `transformers`, without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DuckDataset:
    """Rows with a "text" column, read in batches, as a data set of the hub."""

    def __init__(self, texts: list[str], column: str = "text") -> None:
        self.texts, self.column = texts, column

    @property
    def column_names(self) -> list[str]:
        return [self.column]

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str]]]:
        for first in range(0, len(self.texts), batch_size):
            yield {self.column: self.texts[first : first + batch_size]}


class RowDataset:
    """Rows by number only, as a torch Dataset."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self.texts[index]}


class DuckTokenizer:
    """Words by their numbers, with the methods of a slow tokenizer of the hub."""

    def __init__(self, words: list[str]) -> None:
        self.words = ["<end>", "<unk>", *words]
        self.vocab_size = len(self.words)
        self.eos_token, self.eos_token_id = "<end>", 0
        self.pad_token: str | None = None
        self.calls = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.calls += 1
        known = {word: i for i, word in enumerate(self.words)}
        ids = [known.get(word, 1) for word in text.split()]
        return [*ids, 0] if add_special_tokens else ids

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids if i)


class FastDuckTokenizer:
    """A wrapper around a tokenizers.Tokenizer, as the fast ones of the hub are."""

    def __init__(self, backend: Any, eos_token_id: int = 0) -> None:
        self.backend_tokenizer, self.eos_token_id = backend, eos_token_id
        self.eos_token = backend.id_to_token(eos_token_id)
        self.pad_token: str | None = None
        self.vocab_size = backend.get_vocab_size()

    def save_pretrained(self, folder: str) -> None:
        self.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))
