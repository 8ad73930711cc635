"""The output head and the loss: cross entropy with L2Wrap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The target that does not count, as in torch."""


def _cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, l2wrap: float
) -> tuple[Tensor, Tensor]:
    """Turn ``logits`` ``[n, vocab]`` into their gradient, in place.

    ``weights`` ``[n, 1]`` say what each row counts for. Returns the weighted sum of the cross
    entropies, and its gradient.
    """
    top, argmax = logits.max(dim=-1, keepdim=True)
    chosen = logits.gather(-1, targets)
    grad = logits.sub_(top).exp_()
    total = grad.sum(dim=-1, keepdim=True)
    loss = ((total.log() + top - chosen) * weights).sum()
    grad.mul_(weights / total)
    grad.scatter_add_(-1, targets, -weights)
    grad.scatter_add_(-1, argmax, top * (l2wrap * weights))
    return loss, grad


class _HeadLoss(torch.autograd.Function):
    """Head and loss together, a few hundred tokens at a time.

    The gradients are made in the forward pass, while a chunk's logits are in the cache: neither
    logits nor probabilities of the whole batch ever exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        l2wrap: float,
        dtype: torch.dtype,
    ) -> Tensor:
        tokens = len(targets)
        counts = (targets != IGNORED)[:, None]
        weights = counts.to(hidden.dtype) / counts.sum().clamp_min(1)
        targets = torch.where(counts, targets[:, None], 0)
        ghidden, gweight = torch.empty_like(hidden), torch.zeros_like(weight)
        weight, loss = weight.to(dtype), hidden.new_zeros(())
        for rows in range(0, tokens, _HEAD_CHUNK):
            chunk = slice(rows, rows + _HEAD_CHUNK)
            inputs = hidden[chunk].to(dtype)
            logits = (inputs @ weight.t()).to(hidden.dtype)
            part, grad = _cross_entropy(logits, targets[chunk], weights[chunk], l2wrap)
            loss += part
            grad = grad.to(dtype)
            ghidden[chunk] = grad @ weight
            gweight += grad.t() @ inputs
        ctx.save_for_backward(ghidden, gweight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        ghidden, gweight = ctx.saved_tensors
        return grad * ghidden, grad * gweight, None, None, None


_HEAD_CHUNK = 512  # tokens; 8 MB of logits at a vocabulary of 4096


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, l2wrap: float = 1e-4) -> Tensor:
    """Mean cross entropy of ``hidden @ weight.T`` in nats, with L2Wrap.

    L2Wrap (RWKV-LM) adds ``l2wrap * max_logit / tokens`` to the gradient of every position's
    largest logit, which pulls it towards 0, and leaves the loss value alone. It scales with the
    incoming gradient, so it keeps its proportion under gradient accumulation.

    Args:
        hidden: ``[..., channels]``, float32.
        weight: ``[vocab, channels]``, float32.
        targets: ``[...]``, int64. Those that are -100 do not count: the mean and L2Wrap are over
            the others, and the loss is 0 where there are none.
        l2wrap: 0 turns it off.

    Returns:
        A scalar.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        flat = hidden.flatten(0, -2)
        loss: Tensor = _HeadLoss.apply(flat, weight, targets.flatten(), l2wrap, dtype)
    return loss


class _L2Wrap(torch.autograd.Function):
    """Identity on the loss; adds to the logits' gradient, see ``head_loss``."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, weights)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        logits, weights = ctx.saved_tensors
        top, argmax = logits.max(dim=-1, keepdim=True)
        added = (top * weights * grad).to(logits.dtype)
        return grad, torch.zeros_like(logits).scatter_(-1, argmax, added), None


def naive_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, l2wrap: float = 1e-4
) -> Tensor:
    """Do what ``head_loss`` does, with all logits at once and torch's cross entropy."""
    logits = torch.nn.functional.linear(hidden, weight).flatten(0, -2)
    counts = (targets.flatten() != IGNORED)[:, None]
    tokens = counts.sum().clamp_min(1)
    loss = torch.nn.functional.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    wrapped: Tensor = _L2Wrap.apply(loss / tokens, logits, counts * (l2wrap / tokens))
    return wrapped
