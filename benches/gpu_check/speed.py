"""Part `speed`: tokens per second of published shapes, in turns with PyTorch on the same weights.

Rivals stand in one process and take turns, so that clocks and heat are the same for all. A share is
that of what memory or arithmetic alone would allow, by the figures of part `limits`: weights read
once by a pass, states once by every token, dense products. Text is greedy, and the caller sees
every token before the next is made, with PyTorch too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import harness
import numpy as np
import shapes
import torch
from harness import Figure
from safetensors.torch import load_file
from shapes import Shape
from torch_decode import TorchDecoder

import spikelet
from gpu_check import limits, models
from gpu_check.child import Context
from gpu_check.modes import FORCED, mode
from gpu_check.record import Put, Unit

EAGER, GRAPH, COMPILED = "torch", "torch, CUDA graph", "torch.compile, CUDA graph"
OPERATORS = "torch with training operators"
ROWS = (1, 8, 64, 256)
FEW = 8
"""Tokens of passes that take the engine's narrow path; the others have tensor cores for bytes."""
PASSES = (1, 2, 3, 4, 5, 6, 8, 9, 16, 64)
PROMPTS = (512, 2048)


@dataclass
class Rivals:
    """One shape in every engine and format, loaded when asked for."""

    context: Context
    shape: Shape
    folder: Path
    engines: dict[str, spikelet.Model] = field(default_factory=dict)
    decoder: TorchDecoder | None = None

    def model(self, dtype: str) -> spikelet.Model:
        """The engine's."""
        if dtype not in self.engines:
            self.engines[dtype] = spikelet.load(
                self.folder,
                dtype=dtype,  # type: ignore[arg-type]
                device=self.context.device,  # type: ignore[arg-type]
            )
        return self.engines[dtype]

    def torch(self, rows: int) -> TorchDecoder:
        """PyTorch's, with states of so many rows."""
        if self.decoder is None:
            self.decoder = decoder_of(self.folder, self.shape, torch.bfloat16, self.context)
        self.decoder.resize(rows)
        return self.decoder

    def ids(self, count: int, seed: int = 1) -> list[int]:
        """Tokens to read."""
        return harness.random_ids(self.shape, count, seed)


def decoder_of(folder: Path, shape: Shape, dtype: torch.dtype, context: Context) -> TorchDecoder:
    """Load PyTorch's model."""
    device = context.torch_device()
    tensors = load_file(folder / "model.safetensors", device=device)
    return TorchDecoder(tensors, 1, dtype, device, spiking=shape.model_type == "spikegpt")


def rivals(context: Context, shape: Shape) -> Rivals:
    """The shape's models; those of another shape are given up."""
    folder = models.folder(shape, context.work, context.torch_device())
    found: Rivals = context.keep(shape.name, lambda: Rivals(context, shape, folder))
    return found


def bound(
    shape: Shape, dtype: str, given: dict[str, float], *, rows: int = 1, tokens: int = 1,
    lines: int | None = None,
) -> float | None:  # fmt: skip
    """Seconds of a pass over `tokens` tokens of each row, if only memory or arithmetic counted."""
    read = given.get(limits.READ)
    count = rows * tokens
    bytes_peak = limits.DOT if count <= FEW else limits.TENSOR
    peak = given.get(bytes_peak if dtype == "q8" else limits.FMA)
    if read is None or peak is None:
        return None
    size = shapes.bytes_read(shape, dtype, 1.0, count) + 2 * rows * models.state_bytes(shape)
    work = 2 * shape.multiply_adds(count, count if lines is None else lines)
    return max(size / 1e9 / read, work / 1e9 / peak)


def steps(model: spikelet.Model, prompts: list[list[int]], few: int, many: int) -> float:
    """Seconds of a step of all rows: what more steps cost."""

    def run(tokens: int) -> float:
        begun = perf_counter()
        model.generate_batch(
            prompts, max_new_tokens=tokens, temperature=0.0, ignore_eos=True, seed=0,
            batch_size=len(prompts), speculative="off",
        )  # fmt: skip
        return perf_counter() - begun

    return (run(many) - run(few)) / (many - few)


def torch_seconds(decoder: TorchDecoder, tokens: int) -> float:
    """Seconds of a step of all rows; every token is looked at."""
    begun = perf_counter()
    decoder.generate(tokens)
    return (perf_counter() - begun) / tokens


def put_rates(
    put: Put, shape: Shape, rows: int, found: dict[str, list[float]], given: dict[str, float]
) -> None:
    """Rows of seconds per step, as tokens per second, beside the best of PyTorch."""
    others = [name for name in found if name.startswith("torch")]
    best = min(others, key=lambda name: float(np.median(found[name])), default=None)
    for name, seconds in found.items():
        own = name.removeprefix("spikelet ").partition(",")[0]
        dtype = own if name.startswith("spikelet") else "bf16"
        least = bound(shape, dtype, given, rows=rows)
        row: dict[str, Any] = {"model": shape.name, "engine": name, "format": dtype, "rows": rows}
        row["tokens_per_second"] = Figure.of([rows / one for one in seconds]).json()
        if least is not None:
            row["share"] = Figure.of([least / one for one in seconds]).json()
        if best is not None and name not in others:
            row["against"] = {"peer": best, **harness.ratio(found[best], seconds).json()}
        put(**row)


def decode(context: Context, shape: Shape, rows: int, dtypes: tuple[str, ...], put: Put) -> None:
    """Greedy text of so many rows at once."""
    own = rivals(context, shape)
    tokens = 2 if context.dry else (64 if rows == 1 else 16)
    prompts = [own.ids(8 if rows == 1 else 1, seed) for seed in range(rows)]

    def seconds(model: spikelet.Model) -> float:
        if rows == 1:
            return harness.decode_seconds(model, prompts[0], tokens)
        return steps(model, prompts, 2, 2 + tokens)

    works: dict[str, Callable[[], float]] = {
        f"spikelet {dtype}": partial(seconds, own.model(dtype)) for dtype in dtypes
    }
    decoder = own.torch(rows)

    def eager() -> float:
        decoder.graph = None
        return torch_seconds(decoder, max(2, tokens // 4))

    works[EAGER] = eager
    if context.has_graphs():
        decoder.capture()
        graph = decoder.graph

        def replayed() -> float:
            decoder.graph = graph
            return torch_seconds(decoder, tokens)

        works[GRAPH] = replayed
    found = harness.alternate(works, context.rounds, patience=20)
    put_rates(put, shape, rows, found, context.limits())


def compiled(context: Context, shape: Shape, put: Put) -> None:
    """PyTorch at its best: a compiled layer in a graph. Alone with the engine, as it takes long."""
    if not context.has_graphs():
        put(note="PyTorch has no GPU here")
        return
    own = rivals(context, shape)
    decoder = own.torch(1)
    decoder.compile()
    decoder.capture()
    prompt = own.ids(8)
    model = own.model("bf16")
    works: dict[str, Callable[[], float]] = {
        "spikelet bf16": lambda: harness.decode_seconds(model, prompt, 64),
        COMPILED: lambda: torch_seconds(decoder, 64),
    }
    found = harness.alternate(works, context.rounds, patience=20)
    put_rates(put, shape, 1, found, context.limits())
    own.decoder = None


def drivers(context: Context, shape: Shape, put: Put) -> None:
    """One row, with the ways of driving the card in turns."""
    own = rivals(context, shape)
    prompt = own.ids(8)

    def rival(dtype: str, how: str) -> Callable[[], float]:
        model = spikelet.load(own.folder, dtype=dtype, device=context.device)  # type: ignore[arg-type]

        def seconds() -> float:
            with mode(how):
                return harness.decode_seconds(model, prompt, 2 if context.dry else 64)

        return seconds

    works = {
        f"spikelet {dtype}, {how}": rival(dtype, how)
        for dtype in (("bf16",) if context.dry else ("bf16", "q8"))
        for how in FORCED
    }
    found = harness.alternate(works, context.rounds, patience=20)
    put_rates(put, shape, 1, found, context.limits())


def passes(context: Context, shape: Shape, dtypes: tuple[str, ...], put: Put) -> None:
    """A pass over so many tokens with logits after each, as checking a draft needs it.

    In the loop of decoding, as the engine measures it for itself: logits and states stay where they
    are. And as a call of `forward`, which brings both to the caller.
    """
    own = rivals(context, shape)
    for dtype in dtypes:
        for tokens, second in own.model(dtype).costs()["pass"].items():
            least = bound(shape, dtype, context.limits(), tokens=int(tokens))
            row = {"model": shape.name, "format": dtype, "tokens": int(tokens)}
            row |= {"in_loop_milliseconds": 1e3 * second}
            put(**row, in_loop_share=None if least is None else least / second)
    lengths = (1, 3) if context.dry else PASSES
    ids = own.ids(max(lengths))
    for dtype in dtypes:
        model = own.model(dtype)
        state = model.new_state()

        def seconds(length: int, m: spikelet.Model = model, s: spikelet.State = state) -> float:
            return min(harness.seconds(lambda: m.forward(ids[:length], s)) for _ in range(2))

        works = {str(n): lambda n=n: seconds(n) for n in lengths}  # type: ignore[misc]
        found = harness.alternate(works, context.rounds, patience=10)
        for n in lengths:
            least = bound(shape, dtype, context.limits(), tokens=n)
            row = {"model": shape.name, "format": dtype, "tokens": n}
            row["milliseconds"] = Figure.of([1e3 * one for one in found[str(n)]]).json()
            row["cost"] = harness.ratio(found[str(n)], found[str(lengths[0])]).json()
            if least is not None:
                row["share"] = Figure.of([least / one for one in found[str(n)]]).json()
            put(**row)


def prefill(context: Context, shape: Shape, dtypes: tuple[str, ...], put: Put) -> None:
    """A prompt that is read with logits after its end."""
    own = rivals(context, shape)
    for length in (7,) if context.dry else PROMPTS:
        ids = own.ids(length)
        works: dict[str, Callable[[], float]] = {}
        for dtype in dtypes:
            model = own.model(dtype)
            works[dtype] = lambda m=model, ids=ids: harness.seconds(  # type: ignore[misc]
                lambda: m.forward(ids, m.new_state(), all_logits=False)
            )
        if shape.hidden < 1024:
            works[OPERATORS] = trained_twin(context, shape, length)
        found = harness.alternate(works, context.rounds, patience=10)
        for dtype in works:
            kind = "bf16" if dtype == OPERATORS else dtype
            least = bound(shape, kind, context.limits(), tokens=length, lines=1)
            row = {"model": shape.name, "format": dtype, "prompt": length}
            rates = [length / one for one in found[dtype]]
            row["tokens_per_second"] = Figure.of(rates).json()
            if least is not None:
                row["share"] = Figure.of([least / one for one in found[dtype]]).json()
            put(**row)


def trained_twin(context: Context, shape: Shape, length: int) -> Callable[[], float]:
    """PyTorch with this package's operators, without which it has to go token by token."""
    from spikelet.training import RWKV4, RWKV4Config, SpikeGPT, SpikeGPTConfig

    device = context.torch_device()
    sizes = {"ctx_len": length, "n_layer": shape.layers, "n_embd": shape.hidden}
    torch.manual_seed(1)
    model: torch.nn.Module
    if shape.model_type == "spikegpt":
        model = SpikeGPT(SpikeGPTConfig(shape.vocab, **sizes))
    else:
        model = RWKV4(RWKV4Config(shape.vocab, **sizes))
    model = model.to(device).eval()
    ids = torch.randint(0, shape.vocab, (1, length), device=device)

    def read() -> float:
        begun = perf_counter()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            logits = model(ids)
        # What is looked at has been computed.
        float(logits[0, -1, 0])
        return perf_counter() - begun

    return read


def torch_is_right(context: Context, put: Put) -> None:
    """PyTorch's step computes what the engine computes, in float32 on small models."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for shape in models.TINY:
        folder = models.folder(shape, context.work, context.torch_device())
        decoder = decoder_of(folder, shape, torch.float32, context)
        ids = harness.random_ids(shape, 12)
        model = spikelet.load(folder, dtype="f32", device="cpu")
        expected = model.forward(ids, model.new_state())
        found = decoder.forward(ids).numpy()
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        put(model=shape.name, relative_error=error, passed=error < 1e-4)


def making(context: Context, shape: Shape, dtypes: tuple[str, ...], put: Put) -> None:
    """Seconds to make the random model, and to load it; how sparse it is."""
    begun = perf_counter()
    folder = models.folder(shape, context.work, context.torch_device())
    row: dict[str, Any] = {"model": shape.name, "made_seconds": perf_counter() - begun}
    row["bytes"] = (folder / "model.safetensors").stat().st_size
    own = rivals(context, shape)
    for dtype in dtypes:
        begun = perf_counter()
        row[f"{dtype}_bytes"] = own.model(dtype).weight_bytes
        row[f"load_{dtype}_seconds"] = perf_counter() - begun
    begun = perf_counter()
    own.torch(1)
    put(**row, load_torch_seconds=perf_counter() - begun)


def of_shape(
    context: Context, shape: Shape, rows: tuple[int, ...], dtypes: tuple[str, ...], needs: float
) -> list[Unit]:
    """All that is measured of one shape."""

    def unit(what: str, work: Callable[[Put], None], needs: float) -> Unit:
        return Unit(f"{shape.name} {what}", work, 90, needs)

    found = [unit("loading", lambda put: making(context, shape, dtypes, put), needs)]
    found += [
        unit(f"{n} rows", lambda put, n=n: decode(context, shape, n, dtypes, put), needs / 2)  # type: ignore[misc]
        for n in rows
    ]
    found.append(unit("passes", lambda put: passes(context, shape, dtypes, put), needs / 2))
    found.append(unit("prompts", lambda put: prefill(context, shape, dtypes, put), needs / 2))
    return found


def of_drivers(context: Context, shape: Shape) -> Unit:
    """Where one launch for a whole pass stops being quicker hangs on the size."""
    return Unit(f"{shape.name} drivers", lambda put: drivers(context, shape, put), 60, 5)


def units(context: Context) -> list[Unit]:
    """Return what this part does: a small shape whole, then large ones."""
    found = [Unit("torch is right", lambda put: torch_is_right(context, put), 60)]
    if context.dry:
        for shape, dtype in zip(models.TINY, ("bf16", "q8"), strict=True):
            found += of_shape(context, shape, (1, 3), (dtype,), 1)
        tiny = models.TINY[0]
        found.append(of_drivers(context, tiny))
        return [*found, Unit("compiled", lambda put: compiled(context, tiny, put))]
    both = ("bf16", "q8")
    shape = models.SPIKEGPT_216M
    found += of_shape(context, shape, ROWS, both, 6)
    found.append(of_drivers(context, shape))
    found += of_shape(context, models.RWKV4_1B5, ROWS, both, 20)
    found.append(of_drivers(context, models.RWKV4_1B5))
    found += of_shape(context, models.RWKV4_169M, (1, 64), both, 6)
    found += of_shape(context, models.RWKV4_7B, (1, 8, 64), both, 60)
    found.append(
        Unit(f"{shape.name} torch.compile", lambda put: compiled(context, shape, put), 120, 45)
    )
    return found
