"""Decoding SpikeGPT and RWKV-4 in plain PyTorch, many rows at once: what the GPU is compared with.

As someone who knows PyTorch would write it: key, value and receptance are one batched product,
states are tensors that stay where they are, so a step can be captured as a CUDA graph, and the most
probable token goes into the next step without a stop. Matrices in one type, all else float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Norm(NamedTuple):
    """A layer norm's tensors."""

    weight: Tensor
    bias: Tensor


class Block(NamedTuple):
    """A layer's weights; products take their rows transposed."""

    ln1: Norm
    ln2: Norm
    att_mix: Tensor  # [3, 1, C]: of key, value, receptance
    ffn_mix: Tensor  # [2, 1, C]: of key, receptance
    decay: Tensor
    first: Tensor
    key_value_receptance: Tensor  # [3, C, C]
    output: Tensor
    ffn_key: Tensor
    ffn_receptance: Tensor
    ffn_value: Tensor


class LayerState(NamedTuple):
    """What a layer remembers of each row, [B, C]."""

    att: Tensor
    ffn: Tensor
    numerator: Tensor
    denominator: Tensor
    exponent: Tensor
    membrane1: Tensor
    membrane2: Tensor


def norm(x: Tensor, by: Norm) -> Tensor:
    return functional.layer_norm(x, by.weight.shape, by.weight, by.bias)


def wkv(k: Tensor, v: Tensor, block: Block, state: LayerState) -> Tensor:
    """The recurrence of RWKV-4 over one token; the state moves on."""
    here = block.first + k
    most = torch.maximum(state.exponent, here)
    old, new = torch.exp(state.exponent - most), torch.exp(here - most)
    out = (old * state.numerator + new * v) / (old * state.denominator + new)
    faded = state.exponent + block.decay
    most = torch.maximum(faded, k)
    old, new = torch.exp(faded - most), torch.exp(k - most)
    state.numerator.copy_(old * state.numerator + new * v)
    state.denominator.copy_(old * state.denominator + new)
    state.exponent.copy_(most)
    return out


def fire(x: Tensor, membrane: Tensor) -> Tensor:
    """LIF with a time constant of 2, threshold 1 and hard reset."""
    h = membrane + (x - membrane) * 0.5
    spikes = (h >= 1).float()
    membrane.copy_(h * (1 - spikes))
    return spikes


def layer(x: Tensor, block: Block, state: LayerState, spiking: bool) -> Tensor:
    """One token of every row through one layer."""
    dtype = block.output.dtype
    y = norm(x, block.ln1)
    mixed = torch.lerp(state.att, y, block.att_mix)
    state.att.copy_(y)
    k, v, r = torch.bmm(mixed.to(dtype), block.key_value_receptance).float()
    y = torch.sigmoid(r) * wkv(k, v, block, state)
    y = functional.linear(y.to(dtype), block.output).float()
    x = x + (fire(y, state.membrane1) if spiking else y)
    y = norm(x, block.ln2)
    for_key, for_receptance = torch.lerp(state.ffn, y, block.ffn_mix).to(dtype)
    state.ffn.copy_(y)
    k = torch.relu(functional.linear(for_key, block.ffn_key)) ** 2
    r = torch.sigmoid(functional.linear(for_receptance, block.ffn_receptance).float())
    y = r * functional.linear(k, block.ffn_value).float()
    return x + (fire(y, state.membrane2) if spiking else y)


class TorchDecoder:
    """A model with the states of so many rows; `ids` go in, `logits` come out."""

    def __init__(
        self, tensors: Mapping[str, Tensor], rows: int, dtype: torch.dtype, device: str,
        *, spiking: bool,
    ) -> None:  # fmt: skip
        """Takes tensors under the authors' names; SpikeGPT of variant `rwkv`, real embedding."""
        count = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
        self.spiking = spiking

        def wide(name: str) -> Tensor:
            return tensors[name].to(device, torch.float32).reshape(-1)

        def matrix(name: str) -> Tensor:
            return tensors[f"{name}.weight"].to(device, dtype)

        def norm_of(name: str) -> Norm:
            return Norm(wide(f"{name}.weight"), wide(f"{name}.bias"))

        def block(i: int) -> Block:
            att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
            stacked = [matrix(att + name).T for name in ("key", "value", "receptance")]
            mixes = [wide(f"{att}time_mix_{name}") for name in "kvr"]
            more = [wide(f"{ffn}time_mix_{name}") for name in "kr"]
            return Block(
                norm_of(f"blocks.{i}.ln1"),
                norm_of(f"blocks.{i}.ln2"),
                torch.stack(mixes)[:, None],
                torch.stack(more)[:, None],
                -torch.exp(wide(att + "time_decay")),
                wide(att + "time_first"),
                torch.stack(stacked),
                matrix(att + "output"),
                matrix(ffn + "key"),
                matrix(ffn + "receptance"),
                matrix(ffn + "value"),
            )

        self.blocks = [block(i) for i in range(count)]
        self.embedding = tensors["emb.weight"].to(device)
        self.ln0, self.ln_out = norm_of("blocks.0.ln0"), norm_of("ln_out")
        self.head = matrix("head")
        self.layer: Callable[[Tensor, Block, LayerState, bool], Tensor] = layer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.resize(rows)

    def resize(self, rows: int) -> None:
        """Begins anew with so many rows; a graph is given up."""
        self.graph = None
        c, device = self.ln_out.weight.numel(), self.head.device
        self.states = [
            LayerState(*(torch.zeros(rows, c, device=device) for _ in LayerState._fields))
            for _ in self.blocks
        ]
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.logits = torch.zeros(rows, len(self.head), dtype=self.head.dtype, device=device)
        self.reset()

    def reset(self) -> None:
        """Before the first token."""
        for state in self.states:
            for one in state:
                one.zero_()
            state.exponent.fill_(-1e38)

    @torch.inference_mode()
    def step(self) -> None:
        """Reads `ids`, one of each row, writes `logits`."""
        x = norm(functional.embedding(self.ids, self.embedding).float(), self.ln0)
        for block, state in zip(self.blocks, self.states, strict=True):
            x = self.layer(x, block, state, self.spiking)
        y = norm(x, self.ln_out).to(self.head.dtype)
        torch.mm(y, self.head.T, out=self.logits)

    @torch.inference_mode()
    def greedy(self) -> None:
        """A step, after which `ids` are the most probable ones."""
        self.step()
        self.ids.copy_(torch.argmax(self.logits, dim=1))

    def forward(self, ids: list[int]) -> Tensor:
        """Logits of the first row after each of `ids`, float32 [T, V]; every row reads them."""
        found = []
        for token in ids:
            self.ids.fill_(token)
            self.step()
            found.append(self.logits[0].float().cpu().clone())
        return torch.stack(found)

    def compile(self) -> None:
        """Lets torch.compile fuse a layer."""
        self.layer = torch.compile(layer, fullgraph=True, dynamic=False)

    def capture(self) -> None:
        """Makes a CUDA graph of a greedy step."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.greedy()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.greedy()

    def generate(self, tokens: int) -> list[list[int]]:
        """So many greedy tokens of every row, each seen by the caller before the next is made."""
        found = []
        for _ in range(tokens):
            if self.graph is None:
                self.greedy()
            else:
                self.graph.replay()
            found.append(self.ids.tolist())
        return found
