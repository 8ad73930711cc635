"""A model's own text, drawn by the engine: what a prophet will meet when it drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

import spikelet
from spikelet.training.data.cache import SplitSizes
from spikelet.training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spikelet.training.data import TokenData

DRAWS = ((0.0, 1.0), (0.7, 1.0), (1.0, 1.0))
"""Temperature and top-p of the texts, in turn."""
_ROWS = 128
"""Texts that are drawn at once, all of them alike."""
_LONGEST_PROMPT = 32


def own_text(
    model: spikelet.Model,
    stream: np.ndarray,
    count: int,
    *,
    end_of_text: int,
    draws: Sequence[tuple[float, float]] = DRAWS,
    length: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Return at least ``count`` ids of texts that a model has written, in mixed order.

    Each text goes on from the first tokens of a document (2 to 32 of them, which are part of the
    result), and an end-of-text token follows it.

    Args:
        model: writes.
        stream: ids of documents; where it has no end-of-text token, texts begin anywhere.
        count: ids wanted.
        end_of_text: id between documents, and before the first.
        draws: see ``DRAWS``.
        length: most tokens of a text.
        seed: same seed, same texts.
        progress: is called with the ids drawn and wanted.
    """
    random = np.random.default_rng(seed)
    starts = np.flatnonzero(np.asarray(stream) == end_of_text)[:-1] + 1
    if not len(starts):
        starts = np.arange(max(1, len(stream) - _LONGEST_PROMPT))
    texts: list[np.ndarray] = []
    drawn = turn = 0
    while drawn < count:
        temperature, top_p = draws[turn % len(draws)]
        prompts: list[list[int]] = []
        for _ in range(_ROWS):
            begin, size = int(random.choice(starts)), int(random.integers(2, _LONGEST_PROMPT + 1))
            prompts.append([end_of_text, *stream[begin : begin + size].tolist()])
        written = model.generate_batch(
            prompts,
            max_new_tokens=length,
            temperature=temperature,
            top_p=top_p,
            stop_ids=[end_of_text],
            seed=seed * 100_000 + turn,
            batch_size=_ROWS,
        )
        for prompt, text in zip(prompts, written, strict=True):
            texts.append(np.array([*prompt[1:], *text.ids, end_of_text], dtype=stream.dtype))
            drawn += len(texts[-1])
        turn += 1
        if progress is not None:
            progress(min(drawn, count), count)
    order = np.random.default_rng(seed).permutation(len(texts))
    return np.concatenate([texts[i] for i in order])


def as_data(like: TokenData, train: np.ndarray, valid: np.ndarray) -> TokenData:
    """Return streams as a corpus with the vocabulary of another."""
    sizes = [SplitSizes(0, len(stream), 0) for stream in (train, valid)]
    return replace(like, train=train, valid=valid, train_sizes=sizes[0], valid_sizes=sizes[1])


def own_data(
    folder: Path,
    data: TokenData,
    count: int,
    *,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> TokenData:
    """Return a corpus of the text of the model in ``folder``, a twentieth of it held out.

    Its texts begin as the documents of ``data`` do, the held out ones as held out documents.
    """
    if len(data.train) < 3:
        raise DataError("the text is too short to begin others with")
    model = spikelet.load(folder, threads=threads)
    held_from = data.valid if len(data.valid) > 2 else data.train
    end = data.end_of_text
    train = own_text(model, data.train, count, end_of_text=end, seed=2 * seed, progress=progress)
    valid = own_text(model, held_from, count // 20 + 1, end_of_text=end, seed=2 * seed + 1)
    return as_data(data, train, valid)
