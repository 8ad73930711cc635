"""What is continued: short prompts of six classes, and files of one's own.

Speculation pays as much as a text can be guessed, so one number for all texts would say little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spikelet.errors import OptionError

if TYPE_CHECKING:
    from spikelet import Model

CLASSES = {
    "prose": "stories",
    "dialogue": "direct speech and scripts",
    "code": "programs and markup",
    "lists": "lists, tables, records",
    "copy": "a passage that begins again: the best case of drafts from the prompt",
    "random": "random token ids: the worst case",
}
"""The classes, and what is in them."""

RANDOM_LENGTH = 64
RANDOM_PROMPTS = 4


def read_prompts(text: str) -> list[str]:
    """The prompts of a file: between two of them is a line `%%`. Empty ones do not count."""
    pieces = re.split(r"^%%\n", text, flags=re.MULTILINE)
    return [piece.removesuffix("\n") for piece in pieces if piece.strip()]


def bundled_prompts(name: str) -> list[str]:
    """The texts of a class that comes with the package."""
    file = resources.files("spikelet.bench") / "prompts" / f"{name}.txt"
    return read_prompts(file.read_text(encoding="utf-8"))


def file_prompts(path: Path) -> dict[str, list[str]]:
    """A class of one's own, named like its file."""
    prompts = read_prompts(path.read_text(encoding="utf-8"))
    if not prompts:
        raise OptionError(f"{path}: no prompt in it; prompts stand between lines `%%`")
    return {path.stem: prompts}


def random_ids(vocab_size: int) -> list[list[int]]:
    """The same ids for every model of this vocabulary."""
    drawn = np.random.default_rng(0).integers(0, vocab_size, (RANDOM_PROMPTS, RANDOM_LENGTH))
    found: list[list[int]] = drawn.tolist()
    return found


def choose_classes(model: Model, names: Sequence[str] | None) -> list[str]:
    """The classes asked for; without a wish those that the model can read."""
    unknown = [name for name in names or () if name not in CLASSES]
    if unknown:
        raise OptionError(f"no class of prompts is named {unknown[0]!r}: {', '.join(CLASSES)}")
    return list(names) if names else (list(CLASSES) if has_tokenizer(model) else ["random"])


def has_tokenizer(model: Model) -> bool:
    """Whether the model reads text."""
    from spikelet.errors import TokenizerError

    try:
        _ = model.tokenizer
    except TokenizerError:
        return False
    return True


def token_ids(
    model: Model,
    names: Sequence[str],
    own: Mapping[str, Sequence[str | Sequence[int]]],
    count: int,
) -> dict[str, list[list[int]]]:
    """The first `count` prompts of each class as ids, so that no run has to encode.

    Raises:
        TokenizerError: a class of texts, and a model that reads ids only.
    """
    texts: dict[str, Sequence[str | Sequence[int]]] = {}
    texts |= {name: bundled_prompts(name) for name in names if name != "random"}
    texts |= own
    found = {
        name: [
            model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in prompts[:count]
        ]
        for name, prompts in texts.items()
    }
    if "random" in names:
        found["random"] = random_ids(model.vocab_size)[:count]
    return found
