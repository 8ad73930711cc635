"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048) as a torch module: what SpikeGPT is built on.

    x = ln0(emb)
    x = x + att(ln1(x));  x = x + ffn(ln2(x))                   per block
    logits = head(ln_out(x))

Parameter names, initialisation and L2Wrap are those of RWKV-LM's v4: its files load here, and what
trains here is what the engine loads.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikelet.training.config import RWKV4Config
from spikelet.training.models.activity import BlockActivity
from spikelet.training.models.blocks import ChannelMix, LayerState, TimeMix
from spikelet.training.models.language_model import LanguageModel


class Block(nn.Module):
    """One layer: attention and feed-forward part."""

    ln0: nn.LayerNorm | None

    def __init__(self, config: RWKV4Config, layer: int) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(config.n_embd) if layer == 0 else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.att = TimeMix(config, layer)
        self.ffn = ChannelMix(config, layer)

    def forward(
        self, x: Tensor, state: LayerState, count: bool = False
    ) -> tuple[Tensor, LayerState, BlockActivity]:
        """Return the residual stream ``[batch, time, channels]`` and the state after the block.

        ``count`` also measures the feed-forward part's density.
        """
        if self.ln0 is not None:
            x = self.ln0(x)
        normed1 = self.ln1(x)
        out, wkv = self.att(normed1, state.att_shift, state.wkv)
        x = x + out
        normed2 = self.ln2(x)
        out, density = self.ffn(normed2, state.ffn_shift, count)
        after = LayerState(normed1[:, -1], normed2[:, -1], wkv, state.membrane1, state.membrane2)
        return x + out, after, BlockActivity({}, density)


class RWKV4(LanguageModel):
    """The whole model: ``model(ids)`` gives logits, ``model(ids, targets)`` the training loss.

    ``RWKV4(config)`` initialises as RWKV-LM does, from torch's global random state.
    """

    config: RWKV4Config

    def __init__(self, config: RWKV4Config) -> None:
        super().__init__(config, [Block(config, layer) for layer in range(config.n_layer)])
