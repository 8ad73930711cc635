"""What both language models do around their blocks: loss, state, checkpointing, sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikelet.errors import OptionError
from spikelet.training import loss, ops
from spikelet.training.models.blocks import Config, LayerState, initialise_matrices
from spikelet.training.stepwise import draw_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spikelet.training.models.activity import ActivityRecord, BlockActivity

State = list[LayerState]
"""What a model carries from token to token, one entry per block."""


class LanguageModel(nn.Module):
    """A stack of recurrent blocks between an embedding and a head.

    ``model(ids)`` gives logits, ``model(ids, targets)`` the training loss. ``config`` says the
    shape; ``gradient_checkpointing = True`` keeps only what stands between blocks in memory and
    computes each block again in the backward pass.
    """

    neurons = False
    """Whether blocks spike, and carry membranes."""

    def __init__(self, config: Config, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.config: Any = config
        self.gradient_checkpointing = False
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrices anew from torch's global random state, as the authors do."""
        initialise_matrices(self)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings ``[batch, time, channels]`` of ``ids`` ``[batch, time]``."""
        embedded: Tensor = self.emb(ids)
        return embedded

    def initial_state(self, batch: int = 1) -> State:
        """Return the state before the first token."""
        channels, like = self.config.n_embd, self.ln_out.weight.detach()
        zeros = like.new_zeros(batch, channels)
        membrane = zeros if self.neurons else like.new_zeros(batch, 0)
        wkv = ops.empty_wkv_state(batch, channels, like)
        return [LayerState(zeros, zeros, wkv, membrane, membrane) for _ in self.blocks]

    def residual(
        self,
        ids: Tensor,
        state: State | None = None,
        spikes: list[Tensor] | None = None,
        record: ActivityRecord | None = None,
    ) -> tuple[Tensor, State]:
        """Run the blocks over ``ids``, ``[batch, time]`` int64.

        Args:
            ids: token ids.
            state: what came before; None is nothing.
            spikes: gets each neuron layer's spikes: lif1, lif2 of block 0, and so on.
            record: gets each block's activity.

        Returns:
            The residual stream ``[batch, time, channels]``, and the state after it.
        """
        if state is None:
            state = self.initial_state(ids.shape[0])
        x = self.embed(ids)
        after: State = []
        for layer, (block, before) in enumerate(zip(self.blocks, state, strict=True)):
            activity: BlockActivity
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, layer_state, activity = checkpoint(
                    block, x, before, record is not None, use_reentrant=False
                )
            else:
                x, layer_state, activity = block(x, before, record is not None)
            after.append(layer_state)
            if record is not None:
                record.add(layer, activity)
            if spikes is not None:
                spikes.extend(activity.spikes.values())
        return x, after

    def hidden(
        self,
        ids: Tensor,
        state: State | None = None,
        spikes: list[Tensor] | None = None,
        record: ActivityRecord | None = None,
    ) -> tuple[Tensor, State]:
        """Return ``ln_out`` of what ``residual`` returns: what the head reads."""
        x, after = self.residual(ids, state, spikes, record)
        return self.ln_out(x), after

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits ``[batch, time, vocab]``, or with ``targets`` the mean loss in nats.

        ``targets`` is ``[batch, time]`` int64; those that are -100 do not count. Every row starts
        from a fresh state, as in the authors' training.
        """
        if targets is not None:
            return self.step_loss(ids, targets)[0]
        hidden, _ = self.hidden(ids)
        logits: Tensor = self.head(hidden)
        return logits

    def step_loss(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        rate_penalty: float = 0.0,
        record: ActivityRecord | None = None,
    ) -> tuple[Tensor, State]:
        """Return the loss of a training step, and the state to go on with.

        A long text in pieces: hand the state on, detached (``[s.detach() for s in state]``) where
        back-propagation is to stop.

        Args:
            ids: ``[batch, time]`` int64.
            targets: ``[batch, time]`` int64; -100 does not count.
            state: what came before; None is nothing.
            rate_penalty: is multiplied with the mean firing rate over all neurons and added to the
                loss; its gradient goes through the surrogate.
            record: gets firing rates, densities and the loss without penalty.
        """
        if rate_penalty and not self.neurons:
            raise OptionError(f"rate_penalty is {rate_penalty}, but the model has no neurons")
        spikes: list[Tensor] | None = [] if rate_penalty else None
        hidden, after = self.hidden(ids, state, spikes, record)
        head_loss = loss.head_loss if self.config.fused else loss.naive_head_loss
        value = head_loss(hidden, self.head.weight, targets, self.config.l2wrap)
        if record is not None:
            record.end_pass(value)
        if spikes:
            value = value + rate_penalty * torch.stack([s.mean() for s in spikes]).mean()
        return value, after

    @torch.no_grad()
    def firing_rates(self, ids: Tensor) -> list[float]:
        """Return the share of ones of every neuron layer, in the order of ``hidden``'s spikes."""
        spikes: list[Tensor] = []
        self.hidden(ids, spikes=spikes)
        return [float(layer.mean()) for layer in spikes]

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.8,
        top_p: float = 0.95,
        stop_ids: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[int]:
        """Draw a continuation of ``prompt``, for a look during training; the engine is faster."""
        was_training = self.training
        try:
            return list(
                draw_ids(self, prompt, max_new_tokens, stop_ids, temperature, top_p, generator)
            )
        finally:
            self.train(was_training)
