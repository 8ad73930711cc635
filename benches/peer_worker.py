"""An engine in a process of its own, measured when it is told to: the other end of `peers.py`.

    python peer_worker.py ENGINE MODEL FORMAT THREADS

It loads a model and answers lines of JSON on standard input with lines of JSON, until the input
ends. It runs in the peers' environment, so it imports nothing of the project but in the engine
`spikelet`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What every engine does."""

    name: str
    """With its version."""

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from a fresh state to the logits after the last token."""

    def decode(self, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
        """Seconds per token of greedy decoding after the first token, and all tokens."""


class Spikelet:
    """This project, through its public interface."""

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        import spikelet

        self.name = f"spikelet {spikelet.__version__}"
        self.model = spikelet.load(model, dtype=dtype, threads=threads)

    def prefill(self, ids: Sequence[int]) -> float:
        state = self.model.new_state()
        start = time.perf_counter()
        self.model.forward(ids, state, all_logits=False)
        return time.perf_counter() - start

    def decode(self, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
        done = self.model.generate(
            ids,
            max_new_tokens=tokens + 1,
            temperature=0.0,
            ignore_eos=True,
            seed=0,
            speculative="off",
        ).run()
        return done.stats.decode_seconds / tokens, list(done.ids)


class TorchEngine:
    """What engines on PyTorch share: a loop with no more in it than is needed."""

    name: str

    def read(self, ids: Sequence[int], state: Any) -> tuple[Any, Any]:
        """Logits after the last token as a tensor `[vocab]`, and the state after it."""
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> float:
        start = time.perf_counter()
        self.read(ids, None)
        return time.perf_counter() - start

    def decode(self, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
        logits, state = self.read(ids, None)
        found = [int(logits.argmax())]
        start = time.perf_counter()
        for _ in range(tokens):
            logits, state = self.read(found[-1:], state)
            found.append(int(logits.argmax()))
        return (time.perf_counter() - start) / tokens, found


def use_torch(threads: int) -> Any:
    """PyTorch with so many threads."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch


class RwkvPackage(TorchEngine):
    """The package `rwkv` by RWKV's author, as its page shows it, compiled by TorchScript."""

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        torch = use_torch(threads)
        os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
        from rwkv.model import RWKV

        self.name = f"rwkv {version('rwkv')}, torch {torch.__version__}"
        strategy = {"f32": "cpu fp32", "bf16": "cpu bf16"}[dtype]
        self.model = RWKV(model=str(model.with_suffix("")), strategy=strategy)

    def read(self, ids: Sequence[int], state: Any) -> tuple[Any, Any]:
        return self.model.forward(list(ids), state)


class TransformersRwkv(TorchEngine):
    """RWKV-4 of Hugging Face's transformers; of a prompt it computes the last logits only."""

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        self.torch = use_torch(threads)
        from transformers import RwkvForCausalLM

        self.name = f"transformers {version('transformers')}, torch {self.torch.__version__}"
        kind = getattr(self.torch, {"f32": "float32", "bf16": "bfloat16"}[dtype])
        self.model = RwkvForCausalLM.from_pretrained(model, dtype=kind).eval()

    def read(self, ids: Sequence[int], state: Any) -> tuple[Any, Any]:
        done = self.model.rwkv(self.torch.tensor([ids]), state=state, use_cache=True)
        return self.model.head(done.last_hidden_state[0, -1]), done.state


class TransformersGpt2(TorchEngine):
    """GPT-2 124M of transformers with random weights; the model is not read."""

    def __init__(self, _model: Path, dtype: str, threads: int) -> None:
        self.torch = use_torch(threads)
        from transformers import GPT2Config, GPT2LMHeadModel

        self.name = f"transformers {version('transformers')}, torch {self.torch.__version__}"
        self.torch.manual_seed(0)
        kind = getattr(self.torch, {"f32": "float32", "bf16": "bfloat16"}[dtype])
        self.model = GPT2LMHeadModel(GPT2Config()).to(kind).eval()

    def read(self, ids: Sequence[int], state: Any) -> tuple[Any, Any]:
        done = self.model.transformer(
            self.torch.tensor([ids]), past_key_values=state, use_cache=True
        )
        return self.model.lm_head(done.last_hidden_state[0, -1]), done.past_key_values


class Plain(TorchEngine):
    """SpikeGPT in plain PyTorch."""

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        torch = use_torch(threads)
        from plain_spikegpt import PlainSpikeGPT
        from safetensors.torch import load_file

        self.name = f"torch {torch.__version__}"
        kind = getattr(torch, {"f32": "float32", "bf16": "bfloat16"}[dtype])
        self.model = PlainSpikeGPT(load_file(model / "model.safetensors"), kind)

    def read(self, ids: Sequence[int], state: Any) -> tuple[Any, Any]:
        state = self.model.new_state() if state is None else state
        return self.model.forward(ids, state), state


class LlamaCpp:
    """llama.cpp through llama-cpp-python; `model` is a GGUF file in any format."""

    def __init__(self, model: Path, _dtype: str, threads: int) -> None:
        import llama_cpp
        import numpy as np

        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.np = np
        self.model = llama_cpp.Llama(
            str(model), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads,
            logits_all=False, verbose=False,
        )  # fmt: skip
        memory = llama_cpp.llama_get_memory(self.model.ctx)
        self.forget = lambda: llama_cpp.llama_memory_clear(memory, True)
        self.last_logits = lambda: llama_cpp.llama_get_logits_ith(self.model.ctx, -1)

    def logits(self) -> Any:
        return self.np.ctypeslib.as_array(self.last_logits(), shape=(self.model.n_vocab(),))

    def prefill(self, ids: Sequence[int]) -> float:
        self.model.reset()
        self.forget()
        start = time.perf_counter()
        self.model.eval(list(ids))
        self.logits().max()
        return time.perf_counter() - start

    def decode(self, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
        self.prefill(ids)
        found = [int(self.logits().argmax())]
        start = time.perf_counter()
        for _ in range(tokens):
            self.model.eval(found[-1:])
            found.append(int(self.logits().argmax()))
        return (time.perf_counter() - start) / tokens, found


ENGINES = {
    "spikelet": Spikelet,
    "rwkv": RwkvPackage,
    "transformers": TransformersRwkv,
    "gpt2": TransformersGpt2,
    "plain": Plain,
    "llama.cpp": LlamaCpp,
}


def version(package: str) -> str:
    """Of an installed package."""
    from importlib.metadata import version

    return version(package)


def peak_bytes() -> int:
    """Largest resident size so far; not ru_maxrss, which counts the parent's before the exec."""
    with Path("/proc/self/status").open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def main() -> None:
    """Loads, then answers."""
    # Packages print to standard output: it gets theirs, the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")

    name, model, dtype, threads = sys.argv[1:]
    start = time.perf_counter()
    try:
        engine: Engine = ENGINES[name](Path(model), dtype, int(threads))
    except Exception as error:  # noqa: BLE001 - whatever a package raises is its reason
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(name=engine.name, load_seconds=time.perf_counter() - start)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prefill":
                answer(seconds=engine.prefill(request["ids"]))
            elif request["do"] == "decode":
                seconds, ids = engine.decode(request["ids"], request["tokens"])
                answer(seconds=seconds, ids=ids)
            else:
                answer(peak_bytes=peak_bytes())
        except Exception as error:  # noqa: BLE001 - as above
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
