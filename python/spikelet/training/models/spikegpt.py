"""SpikeGPT (Zhu et al. 2023, arXiv 2302.13939) as a torch module.

An RWKV-4 whose blocks speak in spikes: what attention (``att``, WKV-4) and the feed-forward part
(``ffn``, squared ReLU) give back passes through leaky integrate-and-fire neurons before it joins
the residual stream. The time step of a neuron is the token.

    x = ln0(emb)                                   emb binary (``spike_embedding``) or real
    x = x + lif1(att(ln1(x)));  x = x + lif2(ffn(ln2(x)))       per block
    logits = head(ln_out(x))

Parameter names are those of the authors' checkpoints: what trains here is what the engine loads.
Everything that passes from token to token is in ``LayerState``: T tokens in one call give the same
as T calls that hand the state on.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikelet.training import ops
from spikelet.training.config import SpikeGPTConfig
from spikelet.training.models.activity import BlockActivity
from spikelet.training.models.blocks import ChannelMix, LayerState, TimeMix
from spikelet.training.models.language_model import LanguageModel
from spikelet.training.neurons import LIF, PLIF


def _neurons(config: SpikeGPTConfig) -> LIF | None:
    if config.neuron == "none":
        return None
    kind = PLIF if config.neuron == "plif" else LIF
    return kind(config.n_embd, config.surrogate, config.surrogate_alpha, config.fused)


class Block(nn.Module):
    """One layer: attention (or ``ffnPre``) and feed-forward part, each behind its neurons."""

    ln0: nn.LayerNorm | None
    att: TimeMix | None
    ffnPre: ChannelMix | None  # noqa: N815  (the authors' name)
    lif1: LIF | None
    lif2: LIF | None

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(config.n_embd) if layer == 0 else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        pre = layer == 0 and config.model_type == "RWKV-ffnPre"
        self.att = None if pre else TimeMix(config, layer)
        self.ffnPre = ChannelMix(config, 0) if pre else None
        self.ffn = ChannelMix(config, layer)
        self.lif1, self.lif2 = _neurons(config), _neurons(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: LayerState, count: bool = False
    ) -> tuple[Tensor, LayerState, BlockActivity]:
        """Return the residual stream ``[batch, time, channels]`` and the state after the block.

        ``count`` also measures the feed-forward part's density.
        """
        if self.ln0 is not None:
            x = self.ln0(x)
        normed, wkv = self.ln1(x), state.wkv
        if self.ffnPre is not None:
            current, _ = self.ffnPre(normed, state.att_shift)
        elif self.att is not None:
            current, wkv = self.att(normed, state.att_shift, wkv)
        spikes, membrane1, membrane2 = {}, state.membrane1, state.membrane2
        if self.lif1 is not None:
            current, membrane1 = self.lif1(current, membrane1)
            spikes["lif1"] = current
        x = x + current
        att_shift, normed = normed[:, -1], self.ln2(x)
        current, density = self.ffn(normed, state.ffn_shift, count)
        if self.lif2 is not None:
            current, membrane2 = self.lif2(current, membrane2)
            spikes["lif2"] = current
        after = LayerState(att_shift, normed[:, -1], wkv, membrane1, membrane2)
        return self.dropout(x + current), after, BlockActivity(spikes, density)


class SpikeGPT(LanguageModel):
    """The whole model: ``model(ids)`` gives logits, ``model(ids, targets)`` the training loss.

    ``SpikeGPT(config)`` initialises as the authors do, from torch's global random state.
    """

    config: SpikeGPTConfig

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config, [Block(config, layer) for layer in range(config.n_layer)])
        self.neurons = config.neuron != "none"

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings, binary or real; the binary ones' surrogate is ATan of alpha 2."""
        embedded = super().embed(ids)
        return ops.atan_step(embedded) if self.config.spike_embedding else embedded
