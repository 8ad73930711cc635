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
    "SpeculativeConfig",
    "State",
    "Tokenizer",
    "Trace",
    "__version__",
    "build_ngram_table",
    "convert",
    "cpu_features",
    "default_options",
    "gpu_features",
    "inspect",
    "lif_backward",
    "lif_forward",
    "load_model",
    "measure_fma_peak",
    "measure_int8_peak",
    "measure_read_bandwidth",
    "mix_backward",
    "mix_forward",
    "quantize",
    "sigmoid",
    "wkv4_backward",
    "wkv4_forward",
]

__version__: str

_Ids: TypeAlias = Sequence[SupportsIndex] | NDArray[np.integer[Any]]
_Prompt: TypeAlias = str | _Ids
_Path: TypeAlias = str | PathLike[str]
_Array: TypeAlias = NDArray[np.float32]
_Preset: TypeAlias = Literal["openai", "rwkv"]
_Method: TypeAlias = Literal[
    "off", "auto", "ngram", "table", "prophet", "prophet+ngram", "draft_model"
]
_Speculative: TypeAlias = _Method | SpeculativeConfig
_FinishReason: TypeAlias = Literal["eos", "stop_id", "stop_string", "length", "cancelled", "error"]

class _CpuFeatures(TypedDict):
    levels: list[str]
    chosen: str | None
    reason: str
    physical_cores: int
    logical_cores: int

class _Gpu(TypedDict):
    device: str
    name: str | None
    capability: tuple[int, int] | None
    multiprocessors: int | None
    memory_free: int | None
    memory_total: int | None
    problem: str | None

class _GpuFeatures(TypedDict):
    driver: str | None
    problem: str | None
    devices: list[_Gpu]
    chosen: str | None
    reason: str

def load_model(
    path: _Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    model_type: str | None = None,
    spike_embedding: bool | None = None,
    rescale_every: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Model:
    """Loads a model folder or file: `spikelet.load` without looking for names."""

def convert(
    src: _Path,
    dst: _Path,
    *,
    dtype: str | None = None,
    model_type: str | None = None,
    spike_embedding: bool | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a model in any readable form as a model folder: `config.json`, `model.safetensors`, the tokenizer's files, its prophet.

    The folder's files appear when all are complete; until then what was there stays.

    Args:
        src: a model folder, a safetensors file or the authors' `.pth` file.
        dst: the folder to write.
        dtype: format of the matrices: `"f32"`, `"bf16"` or `"f16"`. None keeps every byte.
        model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
        spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.
        progress: is called with the bytes written and the bytes to write. What it raises stops the work.

    Raises:
        FormatError, UnsupportedError: `src` is no model that this version reads.
        FileError: a file cannot be read or written.
    """

def quantize(
    src: _Path,
    dst: _Path,
    *,
    dtype: str = "q4",
    calibration: _Prompt | None = None,
    threads: int | None = None,
    model_type: str | None = None,
    spike_embedding: bool | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """Writes a model with quantised matrices as a model folder, which `load` then takes like any other.

    Matrices become integers of 8 or 4 bits with a scale per 64 inputs; head and embedding have 8 bits in both formats, a binary
    embedding is kept. A text shows which inputs of each matrix count most: their weights lose least, and the few that are far
    larger than the others are kept in 16 bits. The folder's files appear when all are complete; until then what was there stays.

    Args:
        src: a model folder, a safetensors file or the authors' `.pth` file.
        dst: the folder to write.
        dtype: `"q8"` or `"q4"`.
        calibration: a text like those that the model is used on, or its token ids; some thousand tokens. None: every input counts
            alike, and none is kept apart.
        threads: threads to compute with; None: the physical cores.
        model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
        spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.
        progress: is called with `"reading"` (the text) or `"quantising"`, the tokens or weights done, and how many there are. What it
            raises stops the work.

    Returns:
        A dict per matrix: `name`, `dtype`, `shape`, `outliers` (inputs kept in 16 bits), `error` (squares of what the weights lose, as a
        share of their squares).

    Raises:
        FormatError, UnsupportedError: `src` is no model that this version reads.
        TokenizerError: the calibration is a text and the model has no tokenizer.
        FileError: a file cannot be read or written.
    """

def build_ngram_table(
    path: _Path,
    texts: Sequence[_Prompt],
    *,
    dst: _Path | None = None,
    max_bytes: int | None = None,
    min_order: int | None = None,
    max_order: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """Writes the table that speculative decoding with `method="table"` guesses from: what mostly followed each run of tokens in
    some texts, best those that the model was trained on.

    The same texts give the same file. It appears when it is complete; until then what was there stays.

    Args:
        path: the model's folder; its tokenizer splits the texts.
        texts: texts, or their token ids.
        dst: the file to write; None: `prophet/ngram.safetensors` in the model's folder, where generation looks for it.
        max_bytes: most bytes of the table; None: 4194304. The runs whose guesses come true most often stay.
        min_order: tokens of the shortest runs; None: 2.
        max_order: tokens of the longest runs, at most 8; None: 5.
        progress: is called with how many lengths of runs are done, and how many there are. What it raises stops the work.

    Returns:
        A dict per length of runs: `order`, `entries`, `bytes`.

    Raises:
        FormatError, UnsupportedError: `path` is no model that this version reads.
        TokenizerError: there is a text and the model has no tokenizer.
        FileError: a file cannot be read or written.
    """

def inspect(
    path: _Path, *, model_type: str | None = None, spike_embedding: bool | None = None
) -> dict[str, Any]:
    """What a model's files hold, without loading it: a dict.

    Keys: `path`, `model_type`, `config` (dict), `dtype`, `num_parameters`, `file_bytes`, `files` (path, bytes), `tensors`
    (dicts with `name`, `stored_name`, `dtype`, `shape`, `bytes`), `tokenizer` (description or None), `generation_config`
    (dict), `chat_template` (or None), `memory_bytes` (by dtype), `state_bytes` (of one sequence).

    Args:
        path: a model folder, a safetensors file or the authors' `.pth` file.
        model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
        spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do not say.

    Raises:
        FormatError, TokenizerError, UnsupportedError: it is no model that this version reads.
        FileError: a file cannot be read.
    """

def cpu_features() -> _CpuFeatures:
    """What the engine makes of this machine: a dict.

    Keys: `levels` (instruction sets that the processor has and the engine knows, best first), `chosen` (the one in use, or
    None if the environment variable `SPIKELET_ISA` asks for one that is not there), `reason` (a sentence),
    `physical_cores` (the default number of threads), `logical_cores`.
    """

def gpu_features() -> _GpuFeatures:
    """What the engine makes of this machine's GPUs: a dict. It tries each, which takes a moment; having none is no error.

    Keys: `driver` (the newest CUDA that the NVIDIA driver knows, or None if there is no driver), `problem` (why no GPU can be used, if
    that is the driver's doing, else None), `devices` (dicts with `device` such as `"cuda:0"`, `name`, `capability`,
    `multiprocessors`, `memory_free`, `memory_total` (bytes) and `problem`, which is None where it can be used), `chosen` (what
    `device="auto"` comes to, or None if the environment variable `SPIKELET_DEVICE` asks for what is not there), `reason` (a sentence).
    """

def default_options() -> dict[str, Any]:
    """The engine's own value of every option of `Model.generate`: a dict by the option's name."""

def measure_read_bandwidth(threads: int, num_bytes: int = ...) -> float:
    """Memory read bandwidth in GB/s (1e9 bytes) of `threads` threads that each sum their share of a buffer too large for the
    caches. For benchmarks.
    """

def measure_fma_peak(threads: int) -> float:
    """Peak of f32 fused multiply-adds in GFLOP/s (two per multiply-add) of `threads` threads on the instruction set in use. For
    benchmarks.
    """

def measure_int8_peak(threads: int) -> float:
    """Peak of dot products of bytes in GOP/s (two operations per multiply-add) of `threads` threads on the instruction set in use: what
    products of q8 and q4 weights are made of. For benchmarks.
    """

@final
class ModelConfig:
    """A model's architecture and sizes. It cannot be changed; `to_dict` gives the keys and values of a `config.json`."""

    @property
    def model_type(self) -> str:
        """The architecture: `"spikegpt"` or `"rwkv4"`."""
    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
    @property
    def intermediate_size(self) -> int:
        """Width of the channel mix."""
    @property
    def context_length(self) -> int | None:
        """Tokens per sequence in training, if known. It limits nothing."""
    @property
    def layer_norm_epsilon(self) -> float:
        """Epsilon of every layer norm."""
    @property
    def rescale_every(self) -> int:
        """The compatibility switch with the authors' inference script that is in force; 0 is off."""
    @property
    def spike_embedding(self) -> bool:
        """Whether the embedding passes a step function (SpikeGPT)."""
    @property
    def variant(self) -> str | None:
        """The form of SpikeGPT's first block, `"rwkv"` or `"rwkv-ffnpre"`; None for other models."""
    @property
    def neuron(self) -> str | None:
        """SpikeGPT's neurons: `"lif"`, `"plif"` (learned decay) or `"none"`; None for other models."""
    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, or None."""
    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, or None."""
    def to_dict(self) -> dict[str, Any]:
        """Keys and values of a complete `config.json`."""

@final
class Tokenizer:
    """Text to token ids and back, as the model was trained with.

    Example:
        >>> tokenizer = spikelet.load().tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids: all are below it."""
    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, or None."""
    @property
    def special_ids(self) -> list[int]:
        """Ids of tokens that stand for events in a text and not for a part of it."""
    @property
    def fingerprint(self) -> str:
        """SHA-256 of what defines the tokenizer: equal fingerprints mean equal ids."""
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`. No special tokens are added.

        Args:
            text: what to encode.
            special: whether names of special tokens in the text mean those tokens; if not, they are ordinary text.
        """
    def decode(self, ids: _Ids) -> str:
        """Text of token ids. Bytes that are not UTF-8 become U+FFFD, special tokens nothing.

        Raises:
            OptionError: an id outside the vocabulary.
        """
    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; none for special tokens.

        Raises:
            OptionError: an id outside the vocabulary.
        """
    def id_to_token(self, id: int) -> str | None:
        """A token's name in its vocabulary, also of a special one, or None. Not its text: see `token_bytes`.

        Raises:
            OptionError: an id outside the vocabulary.
        """
    def token_to_id(self, token: str) -> int | None:
        """The id of the token with this name, or None."""

@final
class Model:
    """A loaded model, from `spikelet.load`. It never changes: any number of threads may use it at once.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> model
        <spikelet.Model: spikegpt, 4 layers x 64, f32 on cpu>
    """

    @property
    def config(self) -> ModelConfig:
        """Architecture and sizes."""
    @property
    def dtype(self) -> str:
        """Format of the matrices in memory: `"f32"`, `"bf16"`, `"f16"`, `"q8"` or `"q4"`. Activations and states are always f32."""
    @property
    def device(self) -> str:
        """Where it computes: `"cpu"`, or a GPU such as `"cuda:0"`. Results do not depend on it."""
    @property
    def device_reason(self) -> str:
        """Why it computes there: what was asked for, or what `device="auto"` found."""
    @property
    def threads(self) -> int:
        """Threads it computes with; on a GPU those that draft and draw."""
    @property
    def isa(self) -> str:
        """Instruction set of these threads, such as `"avx2"`: one of the `levels` of `cpu_features`. Results do not depend on it."""
    @property
    def path(self) -> Path:
        """The folder or file it was loaded from."""
    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in memory, packed for the kernels."""
    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's state, however long the sequence."""
    @property
    def sha256(self) -> str:
        """SHA-256 of configuration and weights, computed when first asked for."""
    @property
    def fingerprint(self) -> str:
        """A name for the weights, found in a moment: SHA-256 of every tensor's name, type, shape and first bytes. What is made for one
        model, such as its prophet, says by it for which.
        """
    @property
    def tokenizer(self) -> Tokenizer:
        """How text becomes token ids.

        Raises:
            TokenizerError: the model has none; it takes token ids instead of text.
        """
    @property
    def generation_config(self) -> dict[str, Any]:
        """The options of `generate` that the model's `generation_config.json` sets. They hold unless an argument says otherwise."""
    @property
    def chat_template(self) -> str | None:
        """Template that turns a conversation into a prompt, or None."""
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
        speculative: _Speculative | None = None,
    ) -> Generation:
        """Continues a text. Nothing runs until the result is iterated over.

        An option that is None takes the model's own value (`generation_config`), else the default given here.

        Args:
            prompt: a text, or token ids.
            max_new_tokens: most tokens to generate. Default: 256
            temperature: logits are divided by it; 0 always takes the most probable token. Default: 1.0
            top_k: keep so many of the most probable tokens; 0 is off. Default: 0
            top_p: keep the most probable tokens that together have this probability; 1 is off. Default: 1.0
            min_p: keep tokens at least this fraction as probable as the most probable; 0 is off. Default: 0.0
            typical_p: keep the most typical tokens that together have this probability; 1 is off. Default: 1.0
            repetition_penalty: logits of tokens read or generated are divided by it (negative ones multiplied); 1 is off. Default: 1.0
            presence_penalty: taken from the logits of tokens generated. Default: 0.0
            frequency_penalty: taken from a token's logit for every time it was generated. Default: 0.0
            penalty_decay: the counts of `frequency_penalty` are multiplied by it with every token; 1 is off. Default: 1.0
            logit_bias: added to the logits of these ids; `-math.inf` bans one. Default: {}
            stop: a string or several that end the text. They are not part of it. Default: []
            stop_ids: token ids that end the text. Default: []
            ignore_eos: go on after the model's end-of-text token. Default: False
            include_stop: leave what ended the text at its end. Default: False
            seed: of the random numbers, 0 to 2**64 - 1. None draws one: `Generation.seed` tells which. Default: None
            row: the row's number, 0 to 2**32 - 1. Equal seeds with unequal rows give other texts. Default: 0
            logprobs: how many `top_logprobs` each token gets. Default: 0
            preset: order of the sampling steps. `"openai"`: temperature comes first; `"rwkv"`: it comes last. Default: 'openai'
            speculative: guess tokens ahead, see `SpeculativeConfig`, or the name of a method. The text is the same. Default: 'auto'

        Raises:
            OptionError: a value that an option cannot have, a token id outside the vocabulary, an empty prompt for a model
                without a token that begins a text.
            TokenizerError: a text for a model without a tokenizer.
        """
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
        speculative: _Speculative | None = None,
        batch_size: int | None = None,
    ) -> list[Completion]:
        """Continues many texts at once; rows join as others leave. Ctrl-C raises KeyboardInterrupt between two passes.

        The text of prompt `i` is the one that `generate(prompts[i], seed=seed, row=i)` gives. With a sequence of seeds it is
        the one of `generate(prompts[i], seed=seed[i])`.

        Args:
            prompts: texts or lists of token ids.
            seed: one for all rows, or one for each. None draws one for all.
            batch_size: most rows at once. None: 32

        All other arguments are those of `generate` and hold for every row.

        Raises:
            OptionError, TokenizerError: as `generate`.
        """
    def costs(self) -> dict[str, Any]:
        """What speculative decoding costs on this machine, in seconds: measured when first needed, and remembered in the user's cache.

        Returns:
            `"pass"`: by number of tokens, a pass with logits after each; `"line"`: drawing a token; `"draft"`: by source, the
            `"first"` guess and each `"next"` one, for a single row.

        Raises:
            FormatError: the folder holds a prophet or table that cannot be used.
        """
    def session(self) -> Session:
        """A conversation: it remembers what it has read and generated, and never reads it again."""
    def load_session(self, path: _Path) -> Session:
        """A session that `Session.save` wrote, to go on with the same bits.

        Raises:
            StateError: it belongs to another model, or to this one in another `dtype`.
            FormatError: the file is broken or no session.
            FileError: the file cannot be read.
        """
    def new_state(self, arrays: Mapping[str, _Array] | None = None) -> State:
        """The state before the first token, or one with the arrays of `State.to_numpy`.

        Raises:
            StateError: the arrays do not fit this model, or hold NaN.
        """
    def forward(self, ids: _Ids, state: State, all_logits: bool = True) -> _Array:
        """Reads tokens and gives their logits; `state` moves on.

        The result has the same bits however the tokens are cut into calls.

        Args:
            ids: token ids, at least one.
            state: what came before.
            all_logits: logits after every token, else after the last only.

        Returns:
            float32 `[T, vocab_size]`, or `[vocab_size]` with `all_logits=False`.

        Raises:
            OptionError: no ids, or one outside the vocabulary. The state has not moved then.
            StateError: the state belongs to another model, or another call uses it.
        """
    def score(self, prompt: _Prompt, state: State | None = None) -> _Array:
        """Natural logarithms of the probabilities of given tokens, each given all before it.

        The first token has nothing before it and gets no value: T tokens give T - 1. With a `state` a long text can be scored
        in pieces. The state then has seen all of a piece but its last token, so the next piece begins with that token
        again: `score(ids[0:513], state)`, `score(ids[512:1025], state)`.

        Args:
            prompt: a text, or token ids; at least one token.
            state: what came before the first token; moves on. None: nothing.

        Returns:
            float32 `[T - 1]`.

        Raises:
            OptionError: no tokens, or one outside the vocabulary.
        """
    def trace(self, prompt: _Prompt, state: State | None = None) -> Trace:
        """What the neurons do while a text is read.

        Args:
            prompt: a text, or token ids; at least one token.
            state: what came before; moves on. None: nothing.

        Raises:
            UnsupportedError: the model computes on a GPU; on the CPU it computes the same.
        """

@final
class Generation:
    """Text in the making: an iterator, for `for` and `async for`, of `Token`.

    Tokens are made as they are asked for. `text`, `ids`, `tokens` and `stats` tell of those made so far and make none;
    `run` makes the rest. It is a context manager that closes itself.

    Ctrl-C raises KeyboardInterrupt between two passes of the model; what was made stays readable, and the generation may
    go on or be closed.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> with model.generate([1, 2, 3], max_new_tokens=4, temperature=0) as generation:
        ...     ids = [token.id for token in generation]
        >>> ids == generation.ids, generation.finish_reason
        (True, 'length')
    """

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
    def text(self) -> str:
        """The text made so far."""
    @property
    def ids(self) -> list[int]:
        """Ids of the tokens made so far, with the one that stopped it."""
    @property
    def tokens(self) -> list[Token]:
        """The tokens made so far."""
    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
    @property
    def seed(self) -> int:
        """The seed of its random numbers: as given, else the one that was drawn."""
    @property
    def finish_reason(self) -> _FinishReason | None:
        """Why it ended, or None while it has not: `"eos"`, `"stop_id"`, `"stop_string"`, `"length"`, `"cancelled"`, `"error"`."""
    def run(self) -> Completion:
        """Makes all that is left and returns the whole."""
    def close(self) -> None:
        """Ends it, once a pass that is being run in another thread is over. It can be closed twice; iterating over it then
        ends after the tokens that were made.
        """

@final
class Completion:
    """A text that was generated to its end."""

    @property
    def text(self) -> str:
        """The text."""
    @property
    def ids(self) -> list[int]:
        """Ids of its tokens, with the one that stopped it."""
    @property
    def tokens(self) -> list[Token]:
        """Its tokens."""
    @property
    def stats(self) -> GenerationStats:
        """Counts and times."""
    @property
    def seed(self) -> int:
        """The seed of its random numbers: as given, else the one that was drawn."""
    @property
    def finish_reason(self) -> _FinishReason:
        """Why it ended: `"eos"`, `"stop_id"`, `"stop_string"`, `"length"` or `"cancelled"`."""

@final
class GenerationStats:
    """Counts and times of a generation.

    Times are those of the passes, not of the caller's work between them. A *round* is a pass past the prompt: it verifies a
    draft of some guesses, or has none. In a batch, times hold what was done for other rows in the same passes.
    """

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens read before the first generated one."""
    @property
    def num_generated_tokens(self) -> int:
        """Tokens generated, with the one that stopped it."""
    @property
    def prefill_seconds(self) -> float:
        """Seconds to the first generated token."""
    @property
    def decode_seconds(self) -> float:
        """Seconds from the first generated token to the last."""
    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens read per second; 0 if nothing was timed."""
    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens generated per second after the first; 0 if there was no second."""
    @property
    def seed(self) -> int:
        """The seed of the random numbers."""
    @property
    def num_rounds(self) -> int:
        """Rounds, those without a draft included."""
    @property
    def num_drafts(self) -> int:
        """Rounds with a draft."""
    @property
    def num_draft_tokens(self) -> int:
        """Tokens guessed."""
    @property
    def num_accepted_tokens(self) -> int:
        """Guesses accepted."""
    @property
    def acceptance_rate(self) -> float:
        """Accepted guesses per guess; 0 without drafts."""
    @property
    def acceptance_rate_per_position(self) -> list[float]:
        """Of the drafts with a guess at position 0, 1, and so on: the share in which it was accepted."""
    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a draft's round brought on average, with the one that the model adds; 0 without drafts."""
    @property
    def mean_accepted(self) -> float:
        """Accepted guesses per draft; 0 without drafts."""
    @property
    def accepted_histogram(self) -> list[int]:
        """Drafts of which 0, 1, .. 16 guesses were accepted."""
    @property
    def by_source(self) -> dict[str, dict[str, int]]:
        """`num_draft_tokens` and `num_accepted_tokens` of every source that guessed, by its name."""
    @property
    def chose_base(self) -> float:
        """Share of the rounds without a draft."""
    @property
    def time_draft(self) -> float:
        """Seconds spent guessing."""
    @property
    def time_verify(self) -> float:
        """Seconds of the passes past the prompt."""
    @property
    def time_accept(self) -> float:
        """Seconds spent drawing and accepting."""
    @property
    def predicted_seconds(self) -> float:
        """Seconds that the rounds should have taken by the costs measured beforehand; 0 where none were."""
    @property
    def predicted_base_seconds(self) -> float:
        """Seconds that the same tokens should have taken one by one."""

@final
class SpeculativeConfig:
    """How tokens are guessed ahead and verified, for the `speculative` argument of the ways of generating.

    With `verify="coupled"` (and with temperature 0) no setting changes a text: drafts only change how fast it comes.

    Args:
        method: where guesses come from. `"auto"`: whatever the model brings along, and repetitions of the text;
            `"prophet"`: the network in the model's folder; `"ngram"`: repetitions of prompt and output; `"table"`: the table
            of the training text in the model's folder; `"prophet+ngram"`: repetitions where there are any, else the prophet;
            `"draft_model"`: a second model; `"off"`: one token per pass.
        num_speculative_tokens: guesses per pass, 1 to 16, or `"auto"`: as many as pay, none where none does.
        verify: `"coupled"`: a guess stays if it is the token that would be drawn anyway; `"token"` (Leviathan et al. 2023) and
            `"block"` (Sun et al. 2024) accept more guesses and keep the model's distribution, but give other texts than
            decoding without drafts. `"auto"`: coupled.
        prompt_lookup_min: the shortest repetition, in tokens, that `"ngram"` goes on from.
        prompt_lookup_max: the longest that it looks for.
        draft_model: the model of `"draft_model"`, of the same vocabulary.
        forced_acceptance: accepts each guess with this probability, whatever the model says: to measure a machine apart from
            a draft. The text is then not the model's.

    Raises:
        OptionError: a value that an option cannot have.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> config = spikelet.SpeculativeConfig(method="ngram", num_speculative_tokens=4)
        >>> drafted = model.generate([1, 2, 3] * 4, max_new_tokens=20, seed=1, speculative=config).run()
        >>> plain = model.generate([1, 2, 3] * 4, max_new_tokens=20, seed=1, speculative="off").run()
        >>> drafted.ids == plain.ids
        True
    """

    def __new__(
        cls,
        method: _Method = "auto",
        *,
        num_speculative_tokens: int | Literal["auto"] | None = None,
        verify: Literal["auto", "coupled", "token", "block"] = "auto",
        prompt_lookup_min: int | None = None,
        prompt_lookup_max: int | None = None,
        draft_model: Model | None = None,
        forced_acceptance: float | None = None,
    ) -> Self: ...
    @property
    def method(self) -> str:
        """Where guesses come from."""
    @property
    def num_speculative_tokens(self) -> int | Literal["auto"]:
        """Guesses per pass, or `"auto"`."""
    @property
    def verify(self) -> str:
        """How guesses are accepted."""
    @property
    def prompt_lookup_min(self) -> int:
        """The shortest repetition that `"ngram"` goes on from, in tokens."""
    @property
    def prompt_lookup_max(self) -> int:
        """The longest repetition that `"ngram"` looks for, in tokens."""
    @property
    def draft_model(self) -> Model | None:
        """The second model, if there is one."""
    @property
    def forced_acceptance(self) -> float | None:
        """The probability with which each guess is accepted, if that is forced."""

@final
class Session:
    """A conversation, from `Model.session`: it remembers what it has read and generated in a state of constant size, and never
    reads anything twice.

    It does one thing at a time. Feeding it or letting it generate anew closes a generation that is still running;
    copying or saving it meanwhile is refused.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> session = model.session()
        >>> session.feed([1, 2, 3])
        3
        >>> other = session.fork()
        >>> a = session.generate(max_new_tokens=5, seed=1).run()
        >>> b = other.generate(max_new_tokens=5, seed=1).run()
        >>> a.ids == b.ids, session.num_tokens
        (True, 8)
    """

    @property
    def model(self) -> Model:
        """The model it belongs to."""
    @property
    def num_tokens(self) -> int:
        """Number of tokens read and generated. While it generates: before that generation."""
    def feed(self, prompt: _Prompt) -> int:
        """Reads a text or token ids and remembers them. Returns the number of tokens.

        Ctrl-C raises KeyboardInterrupt between two passes and leaves the session as it was.

        Raises:
            OptionError: a token id outside the vocabulary.
            TokenizerError: a text for a model without a tokenizer.
        """
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
        speculative: _Speculative | None = None,
    ) -> Generation:
        """Goes on where the session stands, after reading `prompt` if there is one.

        Arguments are those of `Model.generate`. What is read and generated is remembered, also the token that stopped it and
        tokens whose text a stop string cut off. A generation that is closed early is remembered as far as it got.
        Penalties see what this call reads and generates, not what came before.

        Raises:
            OptionError: as `Model.generate`; also a session that has read nothing and gets no prompt.
        """
    def fork(self) -> Session:
        """An independent copy: both may go on from here.

        Raises:
            StateError: the session is generating.
        """
    def reset(self) -> None:
        """Forgets everything. A generation that is still running is closed."""
    def save(self, path: _Path) -> None:
        """Writes the session to a safetensors file, with the model's hash. The file appears whole or not at all.

        Raises:
            StateError: the session is generating.
            FileError: the file cannot be written.
        """
    def load(self, path: _Path) -> None:
        """Goes to where a saved session stood. A generation that is still running is closed.

        Raises:
            StateError: it belongs to another model, or to this one in another `dtype`. This session is as it was.
            FormatError: the file is broken or no session.
            FileError: the file cannot be read.
        """

@final
class State:
    """All that a model remembers of one sequence. `Model.new_state` makes one, `Model.forward` moves it on.

    It serves one call at a time.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> state = model.new_state()
        >>> logits = model.forward([5, 6], state)
        >>> logits.shape, state.position
        ((2, 256), 2)
    """

    @property
    def position(self) -> int:
        """Number of tokens it has seen; of those before it was made from arrays it knows nothing."""
    def copy(self) -> State:
        """An independent copy: both may go on from here."""
    def to_numpy(self) -> dict[str, _Array]:
        """A copy of its content: float32 arrays by name, such as `"blocks.0.att.shift"`. `Model.new_state` takes them back."""

@final
class Trace:
    """What the neurons of a model did, from `Model.trace`.

    Site 0 of a layer are the neurons after time mixing, site 1 those after channel mixing. A model without spiking
    neurons has empty `spikes`, `membranes` and `firing_rates`: their first axis is 0.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny")
        >>> trace = model.trace([1, 2, 3])
        >>> trace.spikes.shape, trace.spikes.dtype
        ((4, 2, 3, 64), dtype('uint8'))
    """

    @property
    def spikes(self) -> NDArray[np.uint8]:
        """Spikes, 0 or 1: uint8 `[layers, 2, T, hidden]`."""
    @property
    def membranes(self) -> _Array:
        """Membranes after each token's reset: float32 `[layers, 2, T, hidden]`."""
    @property
    def firing_rates(self) -> _Array:
        """Mean of the spikes, 0 to 1: float32 `[layers, 2]`."""
    @property
    def relu2_density(self) -> _Array:
        """Share of channel mixing's keys above zero, 0 to 1: float32 `[layers, T]`. The rows of `ffn.value` that are read."""

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
) -> None:
    """WKV-4 forward into `y`, and the final state into `state_out`."""

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
) -> None:
    """WKV-4 backward for the output gradient `gy`, into `gw`, `gu`, `gk`, `gv` and `gstate`."""

def sigmoid(x: _Array, y: _Array) -> None:
    """`1 / (1 + exp(-x))` into `y`, with the bits that the engine gives a learned decay."""

def lif_forward(
    x: _Array,
    spikes: _Array,
    *,
    membrane: _Array | None = None,
    decay: _Array | None = None,
    membrane_out: _Array | None = None,
    threads: int = 1,
) -> None:
    """LIF forward into `spikes`, and the final membrane into `membrane_out`; `decay` `[channels]` is one half if left out."""

def lif_backward(
    x: _Array,
    gspikes: _Array,
    gx: _Array,
    *,
    surrogate: str = "atan",
    alpha: float = 2.0,
    membrane: _Array | None = None,
    decay: _Array | None = None,
    gmembrane_out: _Array | None = None,
    gmembrane: _Array | None = None,
    gdecay: _Array | None = None,
    threads: int = 1,
) -> None:
    """LIF backward for the gradient `gspikes`, into `gx`, `gmembrane` and `gdecay` `[channels]`.

    `surrogate` is `"atan"`, `"sigmoid"` or `"fast_sigmoid"`, of steepness `alpha`.
    """

def mix_forward(
    x: _Array,
    last: _Array,
    mixes: Sequence[_Array],
    out: Sequence[_Array] | Sequence[NDArray[np.uint16]],
    *,
    threads: int = 1,
) -> None:
    """Token shift and mix: `out[j] = mixes[j] * x + (1 - mixes[j]) * previous x`."""

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
) -> None:
    """Gradients of the mix for `gout`, into `gx`, `glast` and `gmixes` `[mixes, channels]`."""
