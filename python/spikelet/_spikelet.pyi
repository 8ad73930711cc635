"""Types of the compiled module. What is here is checked against the binary by `mypy.stubtest`."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from spikelet._token import Token

__all__ = [
    "Completion",
    "Generation",
    "GenerationStats",
    "Model",
    "ModelConfig",
    "Session",
    "State",
    "Tokenizer",
    "Trace",
    "__version__",
    "convert",
    "cpu_features",
    "default_options",
    "inspect",
    "lif_backward",
    "lif_forward",
    "load_model",
    "mix_backward",
    "mix_forward",
    "wkv4_backward",
    "wkv4_forward",
]

__version__: str

_Ids: TypeAlias = Sequence[SupportsIndex] | NDArray[np.integer[Any]]
_Prompt: TypeAlias = str | _Ids
_Path: TypeAlias = str | PathLike[str]
_Array: TypeAlias = NDArray[np.float32]
_Preset: TypeAlias = Literal["openai", "rwkv"]
_FinishReason: TypeAlias = Literal["eos", "stop_id", "stop_string", "length", "cancelled", "error"]

class _CpuFeatures(TypedDict):
    levels: list[str]
    chosen: str | None
    reason: str
    physical_cores: int
    logical_cores: int

def load_model(
    path: _Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    model_type: str | None = None,
    rescale_every: int | None = None,
) -> Model: ...
def convert(
    src: _Path,
    dst: _Path,
    *,
    dtype: str | None = None,
    model_type: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None: ...
def inspect(path: _Path) -> dict[str, Any]: ...
def cpu_features() -> _CpuFeatures: ...
def default_options() -> dict[str, Any]: ...

@final
class ModelConfig:
    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def layer_norm_epsilon(self) -> float: ...
    @property
    def rescale_every(self) -> int: ...
    @property
    def spike_embedding(self) -> bool: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Tokenizer:
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def special_ids(self) -> list[int]: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str, *, special: bool = True) -> list[int]: ...
    def decode(self, ids: _Ids) -> str: ...
    def token_bytes(self, id: int) -> bytes: ...
    def id_to_token(self, id: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...

@final
class Model:
    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def generation_config(self) -> dict[str, Any]: ...
    @property
    def chat_template(self) -> str | None: ...
    def generate(
        self,
        prompt: _Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_decay: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: _Ids | None = None,
        ignore_eos: bool | None = None,
        include_stop: bool | None = None,
        seed: int | None = None,
        row: int | None = None,
        logprobs: int | None = None,
        preset: _Preset | None = None,
    ) -> Generation: ...
    def generate_batch(
        self,
        prompts: Sequence[_Prompt],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_decay: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: _Ids | None = None,
        ignore_eos: bool | None = None,
        include_stop: bool | None = None,
        seed: int | Sequence[int] | None = None,
        logprobs: int | None = None,
        preset: _Preset | None = None,
        batch_size: int | None = None,
    ) -> list[Completion]: ...
    def session(self) -> Session: ...
    def load_session(self, path: _Path) -> Session: ...
    def new_state(self, arrays: Mapping[str, _Array] | None = None) -> State: ...
    def forward(self, ids: _Ids, state: State, all_logits: bool = True) -> _Array: ...
    def score(self, prompt: _Prompt, state: State | None = None) -> _Array: ...
    def trace(self, prompt: _Prompt, state: State | None = None) -> Trace: ...

@final
class Generation:
    def __iter__(self) -> Self: ...
    def __next__(self) -> Token: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> Token: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    @property
    def text(self) -> str: ...
    @property
    def ids(self) -> list[int]: ...
    @property
    def tokens(self) -> list[Token]: ...
    @property
    def stats(self) -> GenerationStats: ...
    @property
    def seed(self) -> int: ...
    @property
    def finish_reason(self) -> _FinishReason | None: ...
    def run(self) -> Completion: ...
    def close(self) -> None: ...

@final
class Completion:
    @property
    def text(self) -> str: ...
    @property
    def ids(self) -> list[int]: ...
    @property
    def tokens(self) -> list[Token]: ...
    @property
    def stats(self) -> GenerationStats: ...
    @property
    def seed(self) -> int: ...
    @property
    def finish_reason(self) -> _FinishReason: ...

@final
class GenerationStats:
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_generated_tokens(self) -> int: ...
    @property
    def prefill_seconds(self) -> float: ...
    @property
    def decode_seconds(self) -> float: ...
    @property
    def prefill_tokens_per_second(self) -> float: ...
    @property
    def decode_tokens_per_second(self) -> float: ...
    @property
    def seed(self) -> int: ...

@final
class Session:
    @property
    def model(self) -> Model: ...
    @property
    def num_tokens(self) -> int: ...
    def feed(self, prompt: _Prompt) -> int: ...
    def generate(
        self,
        prompt: _Prompt | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_decay: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: _Ids | None = None,
        ignore_eos: bool | None = None,
        include_stop: bool | None = None,
        seed: int | None = None,
        row: int | None = None,
        logprobs: int | None = None,
        preset: _Preset | None = None,
    ) -> Generation: ...
    def fork(self) -> Session: ...
    def reset(self) -> None: ...
    def save(self, path: _Path) -> None: ...
    def load(self, path: _Path) -> None: ...

@final
class State:
    @property
    def position(self) -> int: ...
    def copy(self) -> State: ...
    def to_numpy(self) -> dict[str, _Array]: ...

@final
class Trace:
    @property
    def spikes(self) -> NDArray[np.uint8]: ...
    @property
    def membranes(self) -> _Array: ...
    @property
    def firing_rates(self) -> _Array: ...
    @property
    def relu2_density(self) -> _Array: ...

def wkv4_forward(
    w: _Array,
    u: _Array,
    k: _Array,
    v: _Array,
    y: _Array,
    *,
    state: _Array | None = None,
    state_out: _Array | None = None,
    threads: int = 1,
) -> None: ...
def wkv4_backward(
    w: _Array,
    u: _Array,
    k: _Array,
    v: _Array,
    gy: _Array,
    gw: _Array,
    gu: _Array,
    gk: _Array,
    gv: _Array,
    *,
    state: _Array | None = None,
    gstate_out: _Array | None = None,
    gstate: _Array | None = None,
    threads: int = 1,
) -> None: ...
def lif_forward(
    x: _Array,
    spikes: _Array,
    *,
    membrane: _Array | None = None,
    membrane_out: _Array | None = None,
    threads: int = 1,
) -> None: ...
def lif_backward(
    x: _Array,
    gspikes: _Array,
    gx: _Array,
    *,
    membrane: _Array | None = None,
    gmembrane_out: _Array | None = None,
    gmembrane: _Array | None = None,
    threads: int = 1,
) -> None: ...
def mix_forward(
    x: _Array,
    last: _Array,
    mixes: Sequence[_Array],
    out: Sequence[_Array] | Sequence[NDArray[np.uint16]],
    *,
    threads: int = 1,
) -> None: ...
def mix_backward(
    x: _Array,
    last: _Array,
    mixes: Sequence[_Array],
    gout: Sequence[_Array] | Sequence[NDArray[np.uint16]],
    gx: _Array,
    glast: _Array,
    gmixes: _Array,
    *,
    threads: int = 1,
) -> None: ...
