"""The operators of RWKV-4 and SpikeGPT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def naive_sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def naive_layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """Layer norm of [T, C] over the last axis, with the biased variance."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + epsilon) * weight + bias)


def naive_wkv4(decay: Array, first: Array, k: Array, v: Array) -> Array:
    """RWKV-4's weighted average of values, [T, C] (RWKV paper, equation 14).

    The weight of token i in the sum at token t is exp(k_i + (t - 1 - i) * decay), that of t itself
    exp(k_t + first); decay [C] is negative. Sums are scaled by the largest exponent, so nothing
    overflows.
    """
    tokens, channels = k.shape
    out = np.empty((tokens, channels))
    for t in range(tokens):
        exponents = [k[i] + (t - 1 - i) * decay for i in range(t)] + [k[t] + first]
        weights = np.exp(np.stack(exponents) - np.max(exponents, axis=0))
        out[t] = (weights * v[: t + 1]).sum(axis=0) / weights.sum(axis=0)
    return out


def naive_lif(x: Array, decay: Array | float = 0.5) -> tuple[Array, Array]:
    """Leaky integrate-and-fire neurons over [T, C], threshold 1, hard reset to 0.

    decay [C] is the share of the way that a membrane goes towards its input per token; one half is
    a time constant of 2.

    Returns spikes [T, C], 0 or 1, and membranes [T, C] after the reset.
    """
    spikes, membranes = np.empty_like(x), np.empty_like(x)
    v = np.zeros(x.shape[1])
    for t in range(x.shape[0]):
        h = v + (x[t] - v) * decay
        spikes[t] = h >= 1
        v = np.where(h >= 1, 0.0, h)
        membranes[t] = v
    return spikes, membranes
