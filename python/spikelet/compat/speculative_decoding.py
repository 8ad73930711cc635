"""The names of lucidrains' ``speculative_decoding`` package, for spikelet's torch modules.

    from spikelet.compat.speculative_decoding import (
        ModelWithProphetWrapper, base_decoding, speculative_decoding,
        speculative_decoding_with_prophet_model,
    )

Algorithm 1 of Leviathan et al. (arXiv 2211.17192) for ``SpikeGPT``, ``RWKV4`` and ``Prophet``, in
plain torch: for experiments, and while a model trains. The engine does the same faster, and from a
model folder: ``export_model``, ``export_prophet``, ``spikelet.load``.

Where it differs from that package: a row keeps one state, so rows need no aligning and no padding
mask; a row that has its length drops out, and counts no more; a draft reads what training reads
(``num_leading_start_tokens`` true hidden states, then its own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spikelet.training.models.blocks import LayerState
from spikelet.training.prophet.learner import ModelWithProphet

if TYPE_CHECKING:
    from collections.abc import Callable

    from spikelet.training.models.language_model import LanguageModel, State
    from spikelet.training.prophet.module import Prophet

__all__ = [
    "ModelWithProphetWrapper",
    "base_decoding",
    "gumbel_sample",
    "speculative_decoding",
    "speculative_decoding_with_prophet_model",
    "top_k",
]


class ModelWithProphetWrapper(nn.Module):
    """A model and its prophet, trained together on hard labels.

    ``wrapper(ids)`` returns the sum of both losses, and the two: ``total, (main, prophet)``.

    Args:
        model: the model.
        prophet: its prophet.
        prophet_train_length: tokens of a training window. The prophet guesses all but the first;
            for drafts of gamma tokens, gamma + 2.
        detach_model_embed_for_prophet: let no gradient of the prophet's into the model.
        num_leading_start_tokens: true hidden states that a window, or a draft, begins with.
    """

    def __init__(
        self,
        model: LanguageModel,
        prophet: Prophet,
        prophet_train_length: int = 8,
        detach_model_embed_for_prophet: bool = False,
        num_leading_start_tokens: int = 1,
    ) -> None:
        super().__init__()
        if num_leading_start_tokens < 1:
            raise ValueError("num_leading_start_tokens must be 1 or more")
        if prophet_train_length < 2:
            raise ValueError("prophet_train_length must be 2 or more")
        self.model, self.prophet = model, prophet
        self.prophet_train_length = prophet_train_length
        self.num_leading_start_tokens = num_leading_start_tokens
        self.detach_model_embed_for_prophet = detach_model_embed_for_prophet
        prophet.config = replace(prophet.config, num_leading=num_leading_start_tokens)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the sum of the losses on ``x``, ``[batch, length]`` ids, and both by themselves.

        A window begins at every position: ``length - prophet_train_length -
        (num_leading_start_tokens - 1)`` of them.
        """
        if x.shape[1] < self.prophet_train_length + self.num_leading_start_tokens:
            raise ValueError(
                f"{x.shape[1]} ids are too few for windows of {self.prophet_train_length}"
            )
        both = ModelWithProphet(
            self.model,
            self.prophet,
            detach=self.detach_model_embed_for_prophet,
            loss="ce",
            num_steps=self.prophet_train_length - 1,
            step_decay=1.0,
        )
        total, _ = both.step_loss(x[:, :-1], x[:, 1:])
        return total, both.passes[-1]


# Distributions


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """Keep the best ``1 - thres`` of the vocabulary; the other logits become minus infinity."""
    kept = logits.topk(max(1, math.ceil((1 - thres) * logits.shape[-1])), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter_(-1, kept.indices, kept.values)


def gumbel_sample(logits: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """Draw ids; temperature 0 takes the likeliest."""
    if temperature <= 0:
        return logits.argmax(dim)
    noise = -torch.empty_like(logits).exponential_().log()
    return (logits / temperature + noise).argmax(dim)


def _probabilities(logits: Tensor, temperature: float, thres: float) -> Tensor:
    logits = logits.float()
    if temperature <= 0:
        return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(top_k(logits, thres) / temperature, -1)


def _draw(probabilities: Tensor) -> Tensor:
    """Draw one id per row of ``[rows, vocab]``."""
    return torch.multinomial(probabilities, 1)[:, 0]


# States: one per row, so that rows can go on alone


def _rows(state: State, chosen: Tensor) -> State:
    return [LayerState(*(part[chosen] for part in layer)) for layer in state]


def _put(state: State, chosen: Tensor, values: State) -> None:
    for layer, other in zip(state, values, strict=True):
        for part, value in zip(layer, other, strict=True):
            part[chosen] = value


def _copy(state: State) -> State:
    return [LayerState(*(part.clone() for part in layer)) for layer in state]


class _Reader:
    """A model that reads, and can be set back to any row's last right token."""

    def __init__(self, net: LanguageModel, batch: int) -> None:
        self.net = net
        self.state = _copy(net.initial_state(batch))

    def read(self, ids: Tensor) -> Tensor:
        """Read ``ids`` ``[batch, time]`` for good; returns the residual stream."""
        residual, self.state = self.net.residual(ids, self.state)
        return residual

    def logits(self, residual: Tensor) -> Tensor:
        logits: Tensor = self.net.head(self.net.ln_out(residual))
        return logits

    def verify(self, ids: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Read ``ids`` on trial.

        Returns the residual stream, and what is to be called with the number of ids that each row
        keeps.
        """
        residual, after = self.net.residual(ids, self.state)

        def keep(counts: Tensor) -> None:
            state = _copy(self.state)
            for count in set(counts.tolist()):
                chosen = (counts == count).nonzero()[:, 0]
                if count == ids.shape[1]:
                    values = _rows(after, chosen)
                else:
                    _, values = self.net.residual(ids[chosen, :count], _rows(self.state, chosen))
                _put(state, chosen, values)
            self.state = state

        return residual, keep

    def drop_all_but(self, chosen: Tensor) -> None:
        self.state = _rows(self.state, chosen)


@torch.no_grad()
def base_decoding(
    net: LanguageModel,
    prompt: Tensor,
    seq_len: int,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
) -> Tensor:
    """Draw token by token; returns the new ids, ``[batch, seq_len - prompt length]``.

    Args:
        net: the model.
        prompt: ``[batch, length]`` ids.
        seq_len: of prompt and new text together.
        temperature: of the draw; 0 takes the likeliest.
        filter_thres: see ``top_k``.
    """
    reader, ids, found = _Reader(net, len(prompt)), prompt, [prompt[:, :0]]
    for _ in range(seq_len - prompt.shape[1]):
        logits = reader.logits(reader.read(ids)[:, -1])
        ids = gumbel_sample(top_k(logits, filter_thres), temperature)[:, None]
        found.append(ids)
    return torch.cat(found, 1)


@dataclass
class _Draft:
    """What was guessed for every row."""

    tokens: Tensor
    """``[rows, guesses]``."""
    drawn_from: Tensor
    """``[rows, guesses, vocab]``."""


class _SmallModel:
    """Drafts with a second model, whose state follows the rows."""

    def __init__(self, net: LanguageModel, prompt: Tensor, vocab: int) -> None:
        self.reader, self.vocab = _Reader(net, len(prompt)), vocab
        if prompt.shape[1] > 1:
            self.reader.read(prompt[:, :-1])
        self._states: list[State] = []

    def draft(self, last: Tensor, count: int, temperature: float, thres: float) -> _Draft:
        tokens, drawn, ids = [], [], last
        self._states = []
        for _ in range(count):
            logits = self.reader.logits(self.reader.read(ids[:, None])[:, -1])
            self._states.append(self.reader.state)
            drawn.append(_probabilities(logits, temperature, thres))
            ids = _draw(drawn[-1])
            tokens.append(ids)
        self.reader.read(ids[:, None])  # in case that all are accepted
        self._states.append(self.reader.state)
        return _Draft(torch.stack(tokens, 1), torch.stack(drawn, 1))

    def observe(self, residual: Tensor, tokens: Tensor, counts: Tensor) -> None:
        state = _copy(self._states[-1])
        for count in set(counts.tolist()):
            chosen = (counts == count).nonzero()[:, 0]
            _put(state, chosen, _rows(self._states[count - 1], chosen))
        self.reader.state = state

    def drop_all_but(self, chosen: Tensor) -> None:
        self.reader.drop_all_but(chosen)


class _ProphetDrafter:
    """Drafts from the last true pairs of hidden state and next token."""

    def __init__(self, prophet: Prophet, net: LanguageModel, leading: int) -> None:
        self.prophet, self.net, self.leading = prophet, net, leading
        self.pairs: list[Tensor] = []
        """Per row ``[known, channels]``: what the last pairs add up to as the blocks' input."""

    def begin(self, residual: Tensor, prompt: Tensor) -> None:
        fused = self._fuse(residual, prompt[:, 1:])
        self.pairs = list(fused[:, -self.leading :])

    def _fuse(self, hidden: Tensor, following: Tensor) -> Tensor:
        token = self.prophet.from_embedding(self.net.embed(following))
        return self.prophet.from_hidden(hidden) + token

    def draft(self, last: Tensor, count: int, temperature: float, thres: float) -> _Draft:
        prophet, ids = self.prophet, self.prophet.draft_ids.long()
        known = min(len(pairs) for pairs in self.pairs)
        x, state = prophet.run(
            torch.stack([pairs[-known:] for pairs in self.pairs]),
            prophet.initial_state(len(self.pairs)),
        )
        tokens, drawn = [], []
        for guess in range(count):
            logits = prophet.logits(x[:, -1], self.net.head.weight)
            over_ids = _probabilities(logits, temperature, thres)
            tokens.append(ids[_draw(over_ids)])
            whole = over_ids.new_zeros(len(over_ids), self.net.config.vocab_size)
            drawn.append(whole.index_copy_(1, ids, over_ids))
            if guess + 1 < count:
                fused = self._fuse(prophet.stand_in(x[:, -1:]), tokens[-1][:, None])
                x, state = prophet.run(fused, state)
        return _Draft(torch.stack(tokens, 1), torch.stack(drawn, 1))

    def observe(self, residual: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Take in what was read: ``tokens[:, i]`` came after ``residual[:, i]``."""
        fused = self._fuse(residual, tokens)
        for row, count in enumerate(counts.tolist()):
            pairs = torch.cat([self.pairs[row], fused[row, :count]]) if self.pairs else fused[row]
            self.pairs[row] = pairs[-self.leading :]

    def drop_all_but(self, chosen: Tensor) -> None:
        self.pairs = [self.pairs[row] for row in chosen.tolist()]


def _decode(
    net: LanguageModel,
    drafter: _SmallModel | _ProphetDrafter,
    reader: _Reader,
    prompt: Tensor,
    seq_len: int,
    gamma: int,
    temperature: float,
    filter_thres: float,
    lenience: float,
    pad_id: int,
) -> tuple[Tensor, float]:
    """Draft and verify until every row has its length; the loop that both kinds of draft share."""
    wanted = seq_len - prompt.shape[1]
    out = prompt.new_full((len(prompt), max(0, wanted)), pad_id)
    lengths = torch.zeros(len(prompt), dtype=torch.long)
    live = torch.arange(len(prompt))  # rows of `out` that the states belong to
    last = prompt[:, -1]
    accepted = rounds = 0
    while len(live):
        # No guess is of use beyond the row that has most left.
        count = min(gamma, int((wanted - lengths[live]).max()) - 1)
        known = not isinstance(drafter, _ProphetDrafter) or all(len(p) for p in drafter.pairs)
        count = count if known else 0
        if count > 0:
            draft = drafter.draft(last, count, temperature, filter_thres)
        elif isinstance(drafter, _SmallModel):
            draft = drafter.draft(last, 1, temperature, filter_thres)
            draft = _Draft(draft.tokens[:, :0], draft.drawn_from[:, :0])
        else:
            vocab = net.config.vocab_size
            draft = _Draft(last.new_zeros(len(live), 0), torch.zeros(len(live), 0, vocab))
        ids = torch.cat([last[:, None], draft.tokens], 1)
        residual, keep = reader.verify(ids)
        p = _probabilities(reader.logits(residual), temperature, filter_thres)
        taken = _accepted(p, draft, lenience)
        last = _draw(_next_distribution(p, draft, taken))
        keep(taken + 1)
        emitted = torch.cat([draft.tokens, last[:, None]], 1)
        emitted.scatter_(1, taken[:, None], last[:, None])
        drafter.observe(residual, emitted, taken + 1)
        for row, (place, kept) in enumerate(zip(live.tolist(), taken.tolist(), strict=True)):
            begin = int(lengths[place])
            new = emitted[row, : min(kept + 1, wanted - begin)]
            out[place, begin : begin + len(new)] = new
            lengths[place] += len(new)
            accepted += min(kept, len(new))
            rounds += 1
        unfinished = (lengths[live] < wanted).nonzero()[:, 0]
        if len(unfinished) < len(live):
            live, last = live[unfinished], last[unfinished]
            reader.drop_all_but(unfinished)
            drafter.drop_all_but(unfinished)
    return out, accepted / max(1, rounds)


def _accepted(p: Tensor, draft: _Draft, lenience: float) -> Tensor:
    """Return how many guesses of each row are accepted: those before the first ``r > p / q``."""
    chosen = draft.tokens[..., None]
    p_drawn = p[:, : chosen.shape[1]].gather(-1, chosen)[..., 0]
    q_drawn = draft.drawn_from.gather(-1, chosen)[..., 0] * lenience
    good = torch.rand_like(p_drawn) * q_drawn < p_drawn
    return good.long().cumprod(1).sum(1)


def _next_distribution(p: Tensor, draft: _Draft, taken: Tensor) -> Tensor:
    """Return what the token after the accepted guesses is drawn from, ``[rows, vocab]``."""
    rows = torch.arange(len(p))
    here = p[rows, taken]
    guesses = draft.drawn_from.shape[1]
    if guesses == 0:
        return here
    q = draft.drawn_from[rows, taken.clamp_max(guesses - 1)]
    rest = (here - q).clamp_min(0) * (taken < guesses)[:, None]
    # All accepted, or nothing left but rounding: the model's own distribution.
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, here)


@torch.no_grad()
def speculative_decoding(
    net: LanguageModel,
    small_net: LanguageModel,
    prompt: Tensor,
    seq_len: int,
    gamma: int = 5,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
    lenience: float = 1.0,
    pad_id: int = 0,
) -> tuple[Tensor, float]:
    """Draw with guesses of a small model of the same vocabulary.

    Args:
        net: the model, whose text it is.
        small_net: guesses.
        prompt: ``[batch, length]`` ids.
        seq_len: of prompt and new text together.
        gamma: guesses per round.
        temperature: of both draws; 0 takes the likeliest.
        filter_thres: of both, see ``top_k``.
        lenience: multiplies q in the test ``r <= p / q``. Below 1 more is accepted, and the text is
            no longer distributed as the model's.
        pad_id: fills the result before it is written.

    Returns:
        The new ids, ``[batch, seq_len - prompt length]``, and how many guesses a round accepts on
        average, over all rounds of rows that were not finished.
    """
    reader = _Reader(net, len(prompt))
    if prompt.shape[1] > 1:
        reader.read(prompt[:, :-1])
    drafter = _SmallModel(small_net, prompt, net.config.vocab_size)
    options = (gamma, temperature, filter_thres, lenience, pad_id)
    return _decode(net, drafter, reader, prompt, seq_len, *options)


@torch.no_grad()
def speculative_decoding_with_prophet_model(
    net: ModelWithProphetWrapper,
    prompt: Tensor,
    seq_len: int,
    gamma: int = 5,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
    lenience: float = 1.0,
    pad_id: int = 0,
) -> tuple[Tensor, float]:
    """Draw with guesses of a prophet; see ``speculative_decoding`` for arguments and result.

    A prompt may be shorter than ``num_leading_start_tokens``: drafts begin with what there is.
    """
    reader = _Reader(net.model, len(prompt))
    drafter = _ProphetDrafter(net.prophet, net.model, net.num_leading_start_tokens)
    width = net.prophet.config.n_embd
    drafter.pairs = [net.prophet.fuse.weight.new_zeros(0, width) for _ in prompt]
    if prompt.shape[1] > 1:
        drafter.begin(reader.read(prompt[:, :-1]), prompt)
    options = (gamma, temperature, filter_thres, lenience, pad_id)
    return _decode(net.model, drafter, reader, prompt, seq_len, *options)
