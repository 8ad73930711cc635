"""A prophet as a torch module: one or few recurrent blocks that go on where the model stands.

    x = fuse [ln_hidden(h) ; ln_emb(emb(t))]    h: the model's residual stream, t: the next token
    x = blocks(x)                               from a zero state at the start of every draft
    y = up x                                    stands in for h after the token that is guessed
    logits = head ln_out(x)                     over draft_ids: the token after t

The first ``num_leading`` steps of a draft read true hidden states, every later one the prophet's
own ``y``. ``emb`` is the model's, and so is a tied ``head``, which reads ``ln_out(y)``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spikelet.errors import OptionError
from spikelet.training import ops
from spikelet.training.config import RWKV4Config, SpikeGPTConfig
from spikelet.training.models import rwkv4, spikegpt
from spikelet.training.models.blocks import LayerState, initialise_matrices

if TYPE_CHECKING:
    import numpy as np

    from spikelet.training.models.blocks import Config
    from spikelet.training.models.language_model import LanguageModel
    from spikelet.training.prophet.config import ProphetConfig


class Prophet(nn.Module):
    """Guesses tokens for one model. Parameter names are those of the exported file.

    Args:
        config: shape; a 0 in it follows the model.
        target: configuration of the model it guesses for.
        draft_ids: the tokens that it can guess, see ``frequent_ids``; None are the first ones.
    """

    draft_ids: Tensor
    model_fingerprint: str | None = None
    """Of the file of the model that it learns from, see ``export.fingerprint``; None is unknown."""

    def __init__(
        self, config: ProphetConfig, target: Config, draft_ids: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config = config.for_model(target.n_embd, target.vocab_size)
        self.target_config = target
        wide, narrow = target.n_embd, config.n_embd
        if draft_ids is None:
            draft_ids = torch.arange(config.draft_vocab)
        if draft_ids.shape != (config.draft_vocab,) or not bool((draft_ids.diff() > 0).all()):
            raise OptionError(f"draft_ids must be {config.draft_vocab} ids, ascending")
        self.register_buffer("draft_ids", draft_ids.to(torch.int32))
        self.ln_hidden = nn.LayerNorm(wide)
        self.ln_emb = nn.LayerNorm(wide)
        self.fuse = nn.Linear(2 * wide, narrow, bias=False)
        self.blocks = nn.ModuleList(_blocks(config, target))
        self.up = nn.Linear(narrow, wide, bias=False) if narrow != wide else None
        self.ln_out = nn.LayerNorm(wide if config.tied_head else narrow)
        self.head = None if config.tied_head else nn.Linear(narrow, config.draft_vocab, bias=False)
        initialise_matrices(self)

    @torch.no_grad()
    def start_from(self, target: LanguageModel) -> None:
        """Begin with what the model's head says of hidden states.

        A head of its own begins as the model's, in the directions in which its rows differ most;
        ``up`` leads back into these directions.
        """
        self.ln_hidden.load_state_dict(target.ln_out.state_dict())
        if self.head is None:
            self.ln_out.load_state_dict(target.ln_out.state_dict())
            return
        narrow, wide = self.config.n_embd, self.target_config.n_embd
        rows = target.head.weight[self.draft_ids.long()] * target.ln_out.weight
        _, _, directions = torch.linalg.svd(rows, full_matrices=False)
        kept = min(narrow, len(directions))
        basis = directions[:kept].T
        self.head.weight[:, :kept] = rows @ basis * math.sqrt(wide / narrow)
        self.fuse.weight[:kept, :wide] = basis.T
        if self.up is not None:
            self.up.weight[:, :kept] = basis

    def initial_state(self, drafts: int) -> list[LayerState]:
        """Return the state that every draft begins with."""
        like, channels = self.ln_hidden.weight.detach(), self.config.n_embd
        zeros = like.new_zeros(drafts, channels)
        membrane = zeros if self.config.block == "spikegpt" else like.new_zeros(drafts, 0)
        wkv = ops.empty_wkv_state(drafts, channels, like)
        return [LayerState(zeros, zeros, wkv, membrane, membrane) for _ in self.blocks]

    def from_hidden(self, hidden: Tensor) -> Tensor:
        """Return what hidden states ``[..., wide]`` add to the blocks' input."""
        return linear(self.ln_hidden(hidden), self.fuse.weight[:, : hidden.shape[-1]])

    def from_embedding(self, embedded: Tensor) -> Tensor:
        """Return what embeddings ``[..., wide]`` add to the blocks' input."""
        return linear(self.ln_emb(embedded), self.fuse.weight[:, embedded.shape[-1] :])

    def run(self, x: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Run the blocks over ``x``, ``[drafts, time, channels]``."""
        after: list[LayerState] = []
        for block, before in zip(self.blocks, state, strict=True):
            x, layer_state, _ = block(x, before)
            after.append(layer_state)
        return x, after

    def stand_in(self, x: Tensor) -> Tensor:
        """Return what takes the place of the model's residual stream at the next step."""
        return x if self.up is None else self.up(x)

    def logits(self, x: Tensor, target_head: Tensor | None = None) -> Tensor:
        """Return logits over ``draft_ids``; a tied head needs the model's ``head.weight``."""
        if self.head is not None:
            logits: Tensor = self.head(self.ln_out(x))
            return logits
        if target_head is None:
            raise OptionError("a prophet with tied_head needs the model's head.weight")
        return linear(self.ln_out(self.stand_in(x)), target_head[self.draft_ids.long()])

    def weights_per_step(self) -> int:
        """Return how many weights one guess reads; the model's pass reads ``weights_per_token``."""
        count = sum(p.numel() for p in self.parameters())
        return count + (
            self.config.draft_vocab * self.target_config.n_embd if self.head is None else 0
        )


def _blocks(config: ProphetConfig, target: Config) -> list[nn.Module]:
    shape: dict[str, Any] = {
        "vocab_size": config.draft_vocab,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_ffn": config.n_ffn,
        "fused": target.fused,
    }
    blocks: list[Any] = []
    for layer in range(config.n_layer):
        if config.block == "rwkv4":
            blocks.append(rwkv4.Block(RWKV4Config(**shape), layer))
        else:
            # Drafts are short and the network is small: nothing of it is left out while it learns.
            blocks.append(
                spikegpt.Block(SpikeGPTConfig(**shape, model_type="RWKV", dropout=0.0), layer)
            )
        blocks[-1].ln0 = None  # fuse has read normed inputs
    return blocks


def frequent_ids(ids: np.ndarray, vocab_size: int, count: int) -> Tensor:
    """Return the ``count`` most frequent ids of a text, ascending; ties go to the lower id."""
    counts = torch.bincount(torch.from_numpy(ids.astype("int64")), minlength=vocab_size)
    order = torch.argsort(counts, descending=True, stable=True)
    return order[:count].sort().values.to(torch.int32)


def weights_per_token(target: LanguageModel) -> int:
    """Return how many weights a model reads for one token: all but the embedding."""
    return sum(p.numel() for name, p in target.named_parameters() if name != "emb.weight")
