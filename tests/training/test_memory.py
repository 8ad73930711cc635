"""What a step keeps for its backward pass: the activations of every token once, and no state."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from spikelet.training import RWKV4, RWKV4Config, SpikeGPT, SpikeGPTConfig  # noqa: E402

LAYERS, CHANNELS, BATCH = 3, 32, 2


def kept_bytes(kind: str, time: int, fused: bool = True) -> int:
    """Bytes of the storages that autograd holds after the forward pass, logits left out."""
    shape = {"vocab_size": 40, "ctx_len": time, "n_layer": LAYERS, "n_embd": CHANNELS}
    model: SpikeGPT | RWKV4
    if kind == "rwkv4":
        model = RWKV4(RWKV4Config(**shape, fused=fused))
    else:
        model = SpikeGPT(SpikeGPTConfig(**shape, dropout=0.0, neuron=kind, fused=fused))
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 40, (BATCH, time))
    embedded = model.embed(ids).detach()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = embedded.requires_grad_()
        for block, state in zip(model.blocks, model.initial_state(BATCH), strict=True):
            x, _, _ = block(x, state)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize(("kind", "expected"), [("lif", 26), ("plif", 26), ("rwkv4", 24)])
def test_memory_grows_by_the_activations_of_a_token(kind: str, expected: int) -> None:
    # Per token and layer, in units of the width: inputs of two norms, of two token shifts, of six
    # matrices and one four times as wide, relu's result (4), k and v, both factors of two gates,
    # and the neurons' inputs (2). Besides, mean and deviation of two norms and of ln0.
    floats = LAYERS * (expected * CHANNELS + 4) + 2 + CHANNELS
    for one, two in [(8, 16), (16, 64), (64, 256)]:
        growth = kept_bytes(kind, two) - kept_bytes(kind, one)
        assert growth == 4 * floats * BATCH * (two - one)


def test_the_plain_loops_keep_more() -> None:
    fused, plain = (kept_bytes("lif", 64, fused) for fused in (True, False))
    assert plain > 1.5 * fused
