"""SpikeGPT (Zhu et al. 2023, arXiv 2302.13939) as a torch module.

An RWKV-4 whose blocks speak in spikes: what attention (``att``, WKV-4) and the feed-forward part
(``ffn``, squared ReLU) give back passes through leaky integrate-and-fire neurons before it joins
the residual stream. The time step of a neuron is the token.

    x = ln0(emb)                                   emb binary (``spike_embedding``) or real
    x = x + lif1(att(ln1(x)));  x = x + lif2(ffn(ln2(x)))       per block
    logits = head(ln_out(x))

Parameter names are those of the authors' checkpoints: what trains here is what the engine loads.
Everything that passes from token to token is in ``SpikeGPTState``: T tokens in one call give the
same as T calls that hand the state on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from spikelet.training import loss, ops
from spikelet.training.config import SpikeGPTConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


class LayerState(NamedTuple):
    """What one block carries from token to token."""

    att_shift: Tensor
    """``[batch, channels]``: ``ln1`` of the last token."""
    ffn_shift: Tensor
    """``[batch, channels]``: ``ln2`` of the last token."""
    wkv: Tensor
    """``[batch, 3, channels]``: aa, bb, pp (unused in an ffnPre block)."""
    membrane1: Tensor
    """``[batch, channels]``."""
    membrane2: Tensor
    """``[batch, channels]``."""

    def detach(self) -> LayerState:
        """Cut the graph here: truncated back-propagation through time."""
        return LayerState(*(part.detach() for part in self))


SpikeGPTState = list[LayerState]


def _ramp(channels: int, power: float) -> Tensor:
    """``(i / channels) ** power``, ``[1, 1, channels]``: from quick to slow channels."""
    return (torch.arange(channels, dtype=torch.float32) / channels).pow(power)[None, None]


class TimeMix(nn.Module):
    """RWKV-4 attention: token shift, WKV, receptance gate."""

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        channels = config.n_embd
        self.fused = config.fused
        depth = layer / max(1, config.n_layer - 1)  # 0 .. 1
        rest = 1 - layer / config.n_layer  # 1 .. almost 0
        position = torch.arange(channels, dtype=torch.float32) / max(1, channels - 1)
        self.time_decay = nn.Parameter(-5 + 8 * position.pow(0.7 + 1.3 * depth))
        zigzag = (torch.arange(channels) + 1) % 3 - 1
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * zigzag.float())
        self.time_mix_k = nn.Parameter(_ramp(channels, rest))
        self.time_mix_v = nn.Parameter(_ramp(channels, rest) + 0.3 * depth)
        self.time_mix_r = nn.Parameter(_ramp(channels, 0.5 * rest))
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output ``[batch, time, channels]`` and the WKV state after it."""
        mix = ops.token_mix if self.fused else ops.naive_token_mix
        mixes = (self.time_mix_k, self.time_mix_v, self.time_mix_r)
        xk, xv, xr = mix(x, shift, mixes)
        k, v, r = self.key(xk), self.value(xv), self.receptance(xr)
        run = ops.wkv4 if self.fused else ops.naive_wkv4
        y, wkv = run(-torch.exp(self.time_decay), self.time_first, k, v, wkv)
        return self.output(torch.sigmoid(r) * y), wkv


class ChannelMix(nn.Module):
    """RWKV-4 feed-forward part: token shift, squared ReLU, receptance gate."""

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        channels = config.n_embd
        self.fused = config.fused
        rest = 1 - layer / config.n_layer
        self.time_mix_k = nn.Parameter(_ramp(channels, rest))
        self.time_mix_r = nn.Parameter(_ramp(channels, rest))
        self.key = nn.Linear(channels, config.intermediate_size, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(config.intermediate_size, channels, bias=False)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return the output, ``[batch, time, channels]``."""
        mix = ops.token_mix if self.fused else ops.naive_token_mix
        xk, xr = mix(x, shift, (self.time_mix_k, self.time_mix_r))
        k = torch.relu(self.key(xk))
        gated: Tensor = torch.sigmoid(self.receptance(xr)) * self.value(k * k)
        return gated


class Block(nn.Module):
    """One layer: attention (or ``ffnPre``) and feed-forward part, each behind LIF neurons."""

    ln0: nn.LayerNorm | None
    att: TimeMix | None
    ffnPre: ChannelMix | None  # noqa: N815  (the authors' name)

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(config.n_embd) if layer == 0 else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        pre = layer == 0 and config.model_type == "RWKV-ffnPre"
        self.att = None if pre else TimeMix(config, layer)
        self.ffnPre = ChannelMix(config, 0) if pre else None
        self.ffn = ChannelMix(config, layer)
        self.dropout = nn.Dropout(config.dropout)
        self.lif = ops.lif if config.fused else ops.naive_lif

    def forward(
        self, x: Tensor, state: LayerState, spikes: list[Tensor] | None = None
    ) -> tuple[Tensor, LayerState]:
        """Return the residual stream after the block, and the block's state after it."""
        if self.ln0 is not None:
            x = self.ln0(x)
        normed, wkv = self.ln1(x), state.wkv
        if self.ffnPre is not None:
            current = self.ffnPre(normed, state.att_shift)
        elif self.att is not None:
            current, wkv = self.att(normed, state.att_shift, wkv)
        spikes1, membrane1 = self.lif(current, state.membrane1)
        x = x + spikes1
        att_shift, normed = normed[:, -1], self.ln2(x)
        spikes2, membrane2 = self.lif(self.ffn(normed, state.ffn_shift), state.membrane2)
        x = self.dropout(x + spikes2)
        if spikes is not None:
            spikes += [spikes1, spikes2]
        return x, LayerState(att_shift, normed[:, -1], wkv, membrane1, membrane2)


class SpikeGPT(nn.Module):
    """The whole model: ``model(ids)`` gives logits, ``model(ids, targets)`` the training loss.

    ``SpikeGPT(config)`` initialises as the authors do, from torch's global random state.
    """

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the matrices as the authors do (time_* are set where they are made).

        Orthogonal with gain sqrt(rows / columns) where that exceeds 1; the embedding tiny; half
        gain for the head; zero for what a layer starts silent with: att.key, att.receptance,
        att.output, ffn.receptance and ffn.value.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            kind = ".".join(name.replace("ffnPre", "ffn").split(".")[-2:])
            if kind in _ZERO_AT_START:
                nn.init.zeros_(module.weight)
                continue
            rows, columns = module.weight.shape
            gain = math.sqrt(max(1.0, rows / columns))
            nn.init.orthogonal_(module.weight, gain=gain * (0.5 if name == "head" else 1.0))
        nn.init.orthogonal_(self.emb.weight, gain=1e-4 * math.sqrt(max(self.emb.weight.shape)))

    def initial_state(self, batch: int = 1) -> SpikeGPTState:
        """Return the state before the first token."""
        channels, like = self.config.n_embd, self.ln_out.weight.detach()
        zeros = like.new_zeros(batch, channels)
        wkv = ops.empty_wkv_state(batch, channels, like)
        return [LayerState(zeros, zeros, wkv, zeros, zeros) for _ in self.blocks]

    def hidden(
        self,
        ids: Tensor,
        state: SpikeGPTState | None = None,
        spikes: list[Tensor] | None = None,
    ) -> tuple[Tensor, SpikeGPTState]:
        """Run the blocks over ``ids``, ``[batch, time]``.

        Returns:
            ``ln_out`` of the residual stream, ``[batch, time, channels]``, and the state after it.
            Each neuron layer's spikes are appended to ``spikes``: lif1, lif2 of block 0, and so on.
        """
        if state is None:
            state = self.initial_state(ids.shape[0])
        x = self.emb(ids)
        if self.config.spike_embedding:
            x = ops.atan_step(x)
        after: SpikeGPTState = []
        for block, before in zip(self.blocks, state, strict=True):
            x, layer_state = block(x, before, spikes)
            after.append(layer_state)
        return self.ln_out(x), after

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits ``[batch, time, vocab]``, or with ``targets`` the mean loss in nats.

        Every row starts from a fresh state, as in the authors' training.
        """
        hidden, _ = self.hidden(ids)
        if targets is None:
            logits: Tensor = self.head(hidden)
            return logits
        head_loss = loss.head_loss if self.config.fused else loss.naive_head_loss
        return head_loss(hidden, self.head.weight, targets, self.config.l2wrap)

    @torch.no_grad()
    def firing_rates(self, ids: Tensor) -> list[float]:
        """Return the share of ones of every neuron layer, in the order of ``hidden``'s spikes."""
        spikes: list[Tensor] = []
        self.hidden(ids, spikes=spikes)
        return [float(layer.mean()) for layer in spikes]

    @torch.no_grad()
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
        self.eval()
        ids, out = torch.tensor([list(prompt)]), []
        state: SpikeGPTState | None = None
        try:
            for _ in range(max_new_tokens):
                hidden, state = self.hidden(ids.to(self.emb.weight.device), state)
                logits = self.head(hidden[0, -1]).float().cpu()
                chosen = _sample(logits, temperature, top_p, generator)
                if chosen in stop_ids:
                    break
                out.append(chosen)
                ids = torch.tensor([[chosen]])
        finally:
            self.train(was_training)
        return out


_ZERO_AT_START = {"att.key", "att.receptance", "att.output", "ffn.receptance", "ffn.value"}


def _sample(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> int:
    """Draw from the smallest set of tokens whose probability reaches ``top_p``."""
    if temperature <= 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
