"""spikelet: fast local text generation with SpikeGPT, a spiking language model, and RWKV.

Example:
    >>> import spikelet
    >>> model = spikelet.load()
    >>> generation = model.generate("Once upon a time", max_new_tokens=20, temperature=0.8, seed=7)
    >>> "".join(token for token in generation) == generation.text
    True

`spikelet.load()` loads the model that comes with the package.
"""

from typing import TYPE_CHECKING

from spikelet._models import find_model, home, load, local_models
from spikelet._spikelet import (
    Completion,
    Generation,
    GenerationStats,
    Model,
    ModelConfig,
    Session,
    SpeculativeConfig,
    State,
    Tokenizer,
    Trace,
    __version__,
    build_ngram_table,
    convert,
    cpu_features,
    default_options,
    gpu_features,
    inspect,
    quantize,
)
from spikelet._token import Token, TokenLogprob
from spikelet.errors import (
    DeviceError,
    FileError,
    FormatError,
    InternalError,
    NotFiniteError,
    NotFoundError,
    OptionError,
    SpikeletError,
    StateError,
    TokenizerError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from spikelet.training.predicter import Predicter as Predicter

__all__ = [
    "Completion",
    "DeviceError",
    "FileError",
    "FormatError",
    "Generation",
    "GenerationStats",
    "InternalError",
    "Model",
    "ModelConfig",
    "NotFiniteError",
    "NotFoundError",
    "OptionError",
    "Session",
    "SpeculativeConfig",
    "SpikeletError",
    "State",
    "StateError",
    "Token",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "Trace",
    "UnsupportedError",
    "__version__",
    "build_ngram_table",
    "convert",
    "cpu_features",
    "default_options",
    "find_model",
    "gpu_features",
    "home",
    "inspect",
    "load",
    "local_models",
    "quantize",
]


def __getattr__(name: str) -> object:
    """Import what needs torch on first use; `from spikelet import *` leaves it out."""
    if name == "Predicter":
        from spikelet import training

        return training.Predicter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what `__getattr__` finds, too."""
    return sorted([*globals(), "Predicter"])
