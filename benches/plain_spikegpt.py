"""SpikeGPT in plain PyTorch, one token at a time: what the authors' inference script does.

That script is in no package index, so this stands in for it in `peers.py`. It is written as a user
of PyTorch would write it: matrices in float32 or bfloat16, states and neurons in float32, one
`F.linear` for each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


class PlainSpikeGPT:
    """The variant `rwkv` with a real embedding and ordinary LIF neurons."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Takes tensors under the authors' names; matrices are kept in `dtype`."""
        self.layers = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
        self.dtype = dtype
        self.w: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.dim() == 2:
                self.w[name] = tensor.to(dtype)
            else:
                self.w[name] = tensor.float().reshape(-1)
        # Looked up one row at a time: the embedding's norm can be taken once.
        self.w["emb.weight"] = self.norm("blocks.0.ln0", tensors["emb.weight"].float()).to(dtype)
        for i in range(self.layers):
            name = f"blocks.{i}.att.time_decay"
            self.w[name] = -torch.exp(self.w[name])
        self.hidden = self.w["ln_out.weight"].numel()

    def new_state(self) -> State:
        """Before the first token."""
        state: State = {}
        for i in range(self.layers):
            for name in ("att", "ffn", "num", "den", "lif1", "lif2"):
                state[f"{name}{i}"] = torch.zeros(self.hidden)
            state[f"max{i}"] = torch.full((self.hidden,), -1e38)
        return state

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, self.w[f"{name}.bias"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.dtype), self.w[f"{name}.weight"]).float()

    def mix(self, name: str, x: Tensor, before: Tensor) -> Tensor:
        share = self.w[name]
        return x * share + before * (1 - share)

    def attention(self, i: int, x: Tensor, state: State) -> Tensor:
        p = f"blocks.{i}.att."
        before, state[f"att{i}"] = state[f"att{i}"], x
        k = self.linear(p + "key", self.mix(p + "time_mix_k", x, before))
        v = self.linear(p + "value", self.mix(p + "time_mix_v", x, before))
        r = torch.sigmoid(self.linear(p + "receptance", self.mix(p + "time_mix_r", x, before)))
        num, den, top = state[f"num{i}"], state[f"den{i}"], state[f"max{i}"]
        here = self.w[p + "time_first"] + k
        most = torch.maximum(top, here)
        old, new = torch.exp(top - most), torch.exp(here - most)
        wkv = (old * num + new * v) / (old * den + new)
        faded = top + self.w[p + "time_decay"]
        most = torch.maximum(faded, k)
        old, new = torch.exp(faded - most), torch.exp(k - most)
        state[f"num{i}"], state[f"den{i}"] = old * num + new * v, old * den + new
        state[f"max{i}"] = most
        return self.linear(p + "output", r * wkv)

    def channels(self, i: int, x: Tensor, state: State) -> Tensor:
        p = f"blocks.{i}.ffn."
        before, state[f"ffn{i}"] = state[f"ffn{i}"], x
        k = torch.relu(self.linear(p + "key", self.mix(p + "time_mix_k", x, before))) ** 2
        r = torch.sigmoid(self.linear(p + "receptance", self.mix(p + "time_mix_r", x, before)))
        return r * self.linear(p + "value", k)

    def neurons(self, name: str, x: Tensor, state: State) -> Tensor:
        """LIF with a time constant of 2, threshold 1 and hard reset."""
        h = state[name] + (x - state[name]) * 0.5
        spikes = (h >= 1).float()
        state[name] = h * (1 - spikes)
        return spikes

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], state: State) -> Tensor:
        """Logits after the last of `ids`, float32 `[vocab]`; `state` moves on."""
        for token in ids:
            x = self.w["emb.weight"][token].float()
            for i in range(self.layers):
                y = self.attention(i, self.norm(f"blocks.{i}.ln1", x), state)
                x = x + self.neurons(f"lif1{i}", y, state)
                y = self.channels(i, self.norm(f"blocks.{i}.ln2", x), state)
                x = x + self.neurons(f"lif2{i}", y, state)
        return self.linear("head", self.norm("ln_out", x))
