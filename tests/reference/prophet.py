"""The prophet: what guesses a model's next tokens from its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .models import _channel_mix, _time_mix, _Weights
from .operators import Array, naive_layer_norm, naive_lif


def naive_prophet(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    target: Mapping[str, Any],
    hidden: Array,
    tokens: Sequence[int],
    count: int,
) -> tuple[list[int], Array, Array]:
    """A greedy draft of `count` tokens.

    hidden [m, D] is the model's residual stream, before `ln_out`, and tokens [m] the tokens that
    follow. `tensors` and `config` are the prophet's, `target` holds the model's tensors.

    Returns the guesses, their logits [count, K] over `draft_ids`, and the stand-ins [count, D] for
    the model's hidden states.
    """
    w, epsilon = _Weights(tensors), config["layer_norm_epsilon"]
    embedding = np.asarray(target["emb.weight"], dtype=np.float64)
    if config["spike_embedding"]:
        embedding = (embedding >= 0) * 1.0
    hiddens, ids = list(hidden.astype(np.float64)), list(tokens)
    guesses, logits, stand_ins = [], [], []
    for _ in range(count):
        h = _norm(w, "ln_hidden", np.stack(hiddens), epsilon)
        e = _norm(w, "ln_emb", embedding[ids], epsilon)
        x = np.concatenate([h, e], axis=1) @ w["fuse.weight"].T
        for i in range(config["num_hidden_layers"]):
            block = w.under(f"blocks.{i}")
            out = _time_mix(block.under("att"), _norm(block, "ln1", x, epsilon))
            x = x + (naive_lif(out)[0] if config["block"] == "spikegpt" else out)
            out = _channel_mix(block.under("ffn"), _norm(block, "ln2", x, epsilon))
            x = x + (naive_lif(out)[0] if config["block"] == "spikegpt" else out)
        y = x if config["hidden_size"] == hidden.shape[1] else x @ w["up.weight"].T
        if config["tied_head"]:
            head = np.asarray(target["head.weight"], dtype=np.float64)[tensors["draft_ids"]]
            line = _norm(w, "ln_out", y, epsilon)[-1] @ head.T
        else:
            line = _norm(w, "ln_out", x, epsilon)[-1] @ w["head.weight"].T
        guesses.append(int(tensors["draft_ids"][np.argmax(line)]))
        logits.append(line)
        stand_ins.append(y[-1])
        hiddens.append(y[-1])
        ids.append(guesses[-1])
    return guesses, np.stack(logits), np.stack(stand_ins)


def _norm(w: _Weights, name: str, x: Array, epsilon: float) -> Array:
    return naive_layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], epsilon)
