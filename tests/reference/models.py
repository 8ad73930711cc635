"""RWKV-4 and SpikeGPT over the authors' tensor names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .operators import Array, naive_layer_norm, naive_lif, naive_sigmoid, naive_wkv4

EPSILON = 1e-5


class _Weights:
    """Tensors as float64, with a prefix."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def under(self, prefix: str) -> _Weights:
        return _Weights(self.tensors, f"{self.prefix}{prefix}.")

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.tensors[self.prefix + name], dtype=np.float64)

    def vector(self, name: str) -> Array:
        return self[name].reshape(-1)

    def norm(self, name: str, x: Array) -> Array:
        return naive_layer_norm(x, self[f"{name}.weight"], self[f"{name}.bias"], EPSILON)


def _mix(x: Array, mu: Array) -> Array:
    """Token shift: the share mu of this token, the rest of the one before."""
    before = np.concatenate([np.zeros((1, x.shape[1])), x[:-1]])
    return x * mu + before * (1 - mu)


def _time_mix(w: _Weights, x: Array) -> Array:
    k = _mix(x, w.vector("time_mix_k")) @ w["key.weight"].T
    v = _mix(x, w.vector("time_mix_v")) @ w["value.weight"].T
    r = _mix(x, w.vector("time_mix_r")) @ w["receptance.weight"].T
    wkv = naive_wkv4(-np.exp(w.vector("time_decay")), w.vector("time_first"), k, v)
    return np.asarray((naive_sigmoid(r) * wkv) @ w["output.weight"].T)


def _channel_mix(w: _Weights, x: Array) -> Array:
    k = _mix(x, w.vector("time_mix_k")) @ w["key.weight"].T
    r = _mix(x, w.vector("time_mix_r")) @ w["receptance.weight"].T
    return np.asarray(naive_sigmoid(r) * (np.maximum(k, 0) ** 2 @ w["value.weight"].T))


def _layers(w: _Weights) -> int:
    return 1 + max(int(name.split(".")[1]) for name in w.tensors if name.startswith("blocks."))


def naive_rwkv4(tensors: Mapping[str, Any], ids: Sequence[int]) -> Array:
    """Logits [T, vocab] of RWKV-4 from a fresh state."""
    w = _Weights(tensors)
    x = w.under("blocks.0").norm("ln0", w["emb.weight"][list(ids)])
    for i in range(_layers(w)):
        block = w.under(f"blocks.{i}")
        x = x + _time_mix(block.under("att"), block.norm("ln1", x))
        x = x + _channel_mix(block.under("ffn"), block.norm("ln2", x))
    return np.asarray(w.norm("ln_out", x) @ w["head.weight"].T)


def _decay(block: _Weights, site: str) -> Array | float:
    """What the neurons of a site move towards their input per token."""
    learned = block.prefix + f"{site}.w" in block.tensors
    return naive_sigmoid(block.vector(f"{site}.w")) if learned else 0.5


def naive_spikegpt(
    tensors: Mapping[str, Any], ids: Sequence[int], *, spike_embedding: bool
) -> tuple[Array, Array]:
    """Logits [T, vocab] and spikes [layers, 2, T, C] of SpikeGPT from a fresh state.

    The ffnPre form and neurons that learn their decay are told by their tensors.
    """
    w = _Weights(tensors)
    embedded = w["emb.weight"][list(ids)]
    x = w.under("blocks.0").norm("ln0", (embedded >= 0) * 1.0 if spike_embedding else embedded)
    spikes = []
    for i in range(_layers(w)):
        block = w.under(f"blocks.{i}")
        normed = block.norm("ln1", x)
        if f"blocks.{i}.ffnPre.key.weight" in w.tensors:
            first = _channel_mix(block.under("ffnPre"), normed)
        else:
            first = _time_mix(block.under("att"), normed)
        fired1, _ = naive_lif(first, _decay(block, "lif1"))
        x = x + fired1
        second = _channel_mix(block.under("ffn"), block.norm("ln2", x))
        fired2, _ = naive_lif(second, _decay(block, "lif2"))
        x = x + fired2
        spikes.append(np.stack([fired1, fired2]))
    return np.asarray(w.norm("ln_out", x) @ w["head.weight"].T), np.stack(spikes)
