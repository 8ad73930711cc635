"""Id streams to batches, in an order that is a function of (seed, position).

Nothing has to be saved but the position, and a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from spikelet.training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

IGNORED = -100
"""Target of a position that counts for nothing."""


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
        return _as_batch([self._window(first + i) for i in range(count)])


class Streams:
    """Windows that follow one another in every row, for training with a carried state.

    The stream is cut into ``rows`` parts; row ``r`` reads part ``r`` from front to back, in every
    epoch from its own random offset. Window number ``n`` belongs to row ``n % rows``.
    """

    def __init__(self, stream: np.ndarray, ctx_len: int, rows: int, seed: int) -> None:
        self.part = (len(stream) - 1) // rows
        # A window's worth of room is kept for the offset; the last target may be the next part's.
        self.per_epoch = (self.part - ctx_len + 1) // ctx_len
        if self.per_epoch < 1:
            raise DataError(
                f"the training text has {len(stream)} tokens; {rows} rows that are read on need at "
                f"least {rows * (2 * ctx_len - 1) + 1} with ctx_len {ctx_len}"
            )
        self.stream, self.ctx_len, self.rows, self.seed = stream, ctx_len, rows, seed

    def begins(self, first: int) -> bool:
        """Tell whether window ``first`` begins its row's part: the state before it is a fresh one.

        That is so for all rows at the same time.
        """
        return first // self.rows % self.per_epoch == 0

    def _window(self, number: int) -> np.ndarray:
        turn, row = divmod(number, self.rows)
        epoch, index = divmod(turn, self.per_epoch)
        offset = int(np.random.default_rng([self.seed, epoch]).integers(self.ctx_len))
        start = row * self.part + offset + index * self.ctx_len
        return self.stream[start : start + self.ctx_len + 1]

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 ``[count, ctx_len]``, of windows ``first`` onwards."""
        return _as_batch([self._window(first + i) for i in range(count)])


def _as_batch(windows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(np.stack([window.astype(np.int64) for window in windows]))
    return ids[:, :-1], ids[:, 1:]


def pack(ids: Sequence[int] | np.ndarray, ctx_len: int) -> Tensor:
    """Cut a stream of ids into rows, int64 ``[n, ctx_len + 1]``.

    A row begins with the last id of the row before: with ``rows[:, :-1]`` as inputs and
    ``rows[:, 1:]`` as targets every id but the first is predicted once. What does not fill a row
    at the end is left out.
    """
    stream = torch.from_numpy(np.asarray(ids).astype(np.int64))
    if len(stream) < ctx_len + 1:
        raise DataError(f"{len(stream)} ids fill no row of ctx_len + 1 = {ctx_len + 1}")
    return stream.unfold(0, ctx_len + 1, ctx_len).contiguous()


def padded_batch(
    rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of texts of unequal length, int64 ``[n, length]``.

    Args:
        rows: ids of each text; one of ``n`` ids gives ``n - 1`` predictions.
        pad_id: fills the inputs. It may be the end-of-text token: targets are ``IGNORED`` by place,
            so a real end of text counts and padding does not.
        length: predictions per row; longer texts are cut. None: as many as the longest has.
    """
    wanted = max((len(row) - 1 for row in rows), default=0) if length is None else length
    inputs = torch.full((len(rows), wanted), pad_id, dtype=torch.int64)
    targets = torch.full((len(rows), wanted), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids = torch.tensor(list(row[: wanted + 1]), dtype=torch.int64)
        inputs[i, : len(ids) - 1], targets[i, : len(ids) - 1] = ids[:-1], ids[1:]
    return inputs, targets


def mask_tokens(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    *,
    share: float = 0.15,
    keep: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets for models that fill gaps, as BERT does.

    Of the positions, ``share`` become targets; their inputs are the mask in 8 of 10 cases, a random
    id in one, and left as they are in one. All other targets are ``IGNORED``.

    Args:
        ids: any shape.
        mask_id: stands for a gap.
        vocab_size: random ids are below it.
        share: of the positions that become targets.
        keep: ids that are never targets, such as padding.
        generator: of the random numbers.
    """
    chance = torch.rand(ids.shape, generator=generator)
    chosen = chance < share
    for one in keep:
        chosen &= ids != one
    random = torch.randint(vocab_size, ids.shape, generator=generator)
    inputs = torch.where(chosen & (chance < 0.9 * share), mask_id, ids)
    inputs = torch.where(chosen & (chance < 0.1 * share), random, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


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
