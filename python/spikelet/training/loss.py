"""The output head and the loss: cross entropy with L2Wrap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _cross_entropy(
    logits: Tensor, targets: Tensor, l2wrap: float, tokens: int
) -> tuple[Tensor, Tensor]:
    """Turn ``logits`` ``[n, vocab]`` into their gradient, in place.

    Returns the sum of the cross entropies, and the gradient of the mean over ``tokens`` tokens.
    """
    top, argmax = logits.max(dim=-1, keepdim=True)
    chosen = logits.gather(-1, targets[:, None])
    grad = logits.sub_(top).exp_()
    total = grad.sum(dim=-1, keepdim=True)
    loss = (total.log() + top - chosen).sum()
    grad.mul_(1 / (tokens * total))
    grad.scatter_add_(-1, targets[:, None], grad.new_full((len(targets), 1), -1 / tokens))
    grad.scatter_add_(-1, argmax, top * (l2wrap / tokens))
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
        ghidden, gweight = torch.empty_like(hidden), torch.zeros_like(weight)
        weight, loss = weight.to(dtype), hidden.new_zeros(())
        for rows in range(0, tokens, _HEAD_CHUNK):
            chunk = slice(rows, rows + _HEAD_CHUNK)
            inputs = hidden[chunk].to(dtype)
            logits = (inputs @ weight.t()).to(hidden.dtype)
            part, grad = _cross_entropy(logits, targets[chunk], l2wrap, tokens)
            loss += part
            grad = grad.to(dtype)
            ghidden[chunk] = grad @ weight
            gweight += grad.t() @ inputs
        ctx.save_for_backward(ghidden, gweight)
        return loss / tokens

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
        hidden: ``[..., channels]``.
        weight: ``[vocab, channels]``.
        targets: ``[...]``, int64.
        l2wrap: 0 turns it off.
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
    def forward(ctx: Any, loss: Tensor, logits: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.strength = strength
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (logits,) = ctx.saved_tensors
        top, argmax = logits.max(dim=-1, keepdim=True)
        scale = grad * ctx.strength / top.numel()
        return grad, torch.zeros_like(logits).scatter_(-1, argmax, top * scale), None


def naive_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, l2wrap: float = 1e-4
) -> Tensor:
    """Do what ``head_loss`` does, with all logits at once and torch's cross entropy."""
    logits = torch.nn.functional.linear(hidden, weight)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
    wrapped: Tensor = _L2Wrap.apply(loss, logits, l2wrap)
    return wrapped
