"""Configuration of models. Without torch: the command line shows it at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from spikelet.errors import OptionError

_MODEL_TYPES = {"RWKV": "rwkv", "RWKV-ffnPre": "rwkv-ffnpre"}
_NEURONS = ("lif", "plif", "none")
_USUAL_ALPHA = {"atan": 2.0, "sigmoid": 4.0, "fast_sigmoid": 25.0}


def surrogate_alpha(surrogate: str, alpha: float) -> float:
    """Return a surrogate gradient's steepness: ``alpha``, or the usual one when it is 0."""
    if surrogate not in _USUAL_ALPHA:
        raise OptionError(f"surrogate is {surrogate!r}; known are {sorted(_USUAL_ALPHA)}")
    if not alpha >= 0:
        raise OptionError(f"surrogate_alpha is {alpha}; it must be above 0, or 0 for the usual one")
    return alpha or _USUAL_ALPHA[surrogate]


def _check_sizes(config: SpikeGPTConfig | RWKV4Config) -> None:
    for name in ("vocab_size", "ctx_len", "n_layer", "n_embd"):
        if getattr(config, name) < 1:
            raise OptionError(f"{name} is {getattr(config, name)}; at least 1 is needed")
    if config.n_ffn < 0:
        raise OptionError(f"n_ffn is {config.n_ffn}; 0 (4 * n_embd) or more is needed")


def _model_config(config: SpikeGPTConfig | RWKV4Config) -> dict[str, object]:
    """Return what the ``config.json`` of every architecture says."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "intermediate_size": config.intermediate_size,
        "context_length": config.ctx_len,
        "layer_norm_epsilon": 1e-5,
    }


def _fields_of(
    kind: type[SpikeGPTConfig | RWKV4Config], config: dict[str, object], options: dict[str, object]
) -> dict[str, object]:
    """Return the fields that the ``config.json`` of every architecture gives, and ``options``."""
    unknown = set(options) - {field.name for field in fields(kind)}
    if unknown:
        raise OptionError(f"unknown options {sorted(unknown)}")
    return {
        "vocab_size": config["vocab_size"],
        "ctx_len": config.get("context_length", 1024),
        "n_layer": config["num_hidden_layers"],
        "n_embd": config["hidden_size"],
        "n_ffn": config.get("intermediate_size", 0),
        **options,
    }


@dataclass
class SpikeGPTConfig:
    """Shape and options of a SpikeGPT; the defaults are the authors'.

    Args:
        vocab_size: tokens the model knows.
        ctx_len: tokens per training window; generation has no limit.
        model_type: ``"RWKV"``, or ``"RWKV-ffnPre"`` for a feed-forward part in place of block 0's
            attention.
        n_layer: blocks.
        n_embd: channels of the residual stream.
        n_ffn: hidden width of the feed-forward parts; 0 means ``4 * n_embd``.
        spike_embedding: embed each token as a 0/1 vector (1 where the weight is >= 0). The
            published 216M model has a real embedding.
        dropout: share of the residual stream dropped after each block.
        l2wrap: strength of L2Wrap, see ``loss.head_loss``.
        fused: run the engine's kernels; False takes the plain-torch loops.
        neuron: ``"lif"``, the authors'; ``"plif"`` with a learned decay per channel; or ``"none"``:
            a block's output joins the residual stream as it is, without spikes.
        surrogate: in place of the spike's derivative: ``"atan"``, the authors', ``"sigmoid"`` or
            ``"fast_sigmoid"``, see ``ops.surrogate_slope``.
        surrogate_alpha: its steepness; 0 is the usual one (2, 4, 25).
    """

    vocab_size: int = 30500
    ctx_len: int = 1024
    model_type: str = "RWKV"
    n_layer: int = 12
    n_embd: int = 768
    n_ffn: int = 0
    spike_embedding: bool = True
    dropout: float = 0.03
    l2wrap: float = 1e-4
    fused: bool = True
    neuron: str = "lif"
    surrogate: str = "atan"
    surrogate_alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.model_type not in _MODEL_TYPES:
            known = ", ".join(repr(name) for name in _MODEL_TYPES)
            raise OptionError(f"model_type is {self.model_type!r}; known are {known}")
        if self.neuron not in _NEURONS:
            raise OptionError(f"neuron is {self.neuron!r}; known are {list(_NEURONS)}")
        surrogate_alpha(self.surrogate, self.surrogate_alpha)
        _check_sizes(self)
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout is {self.dropout}; it must lie in [0, 1)")

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the feed-forward parts."""
        return self.n_ffn or 4 * self.n_embd

    def to_model_config(self) -> dict[str, object]:
        """Return the ``config.json`` of a model folder."""
        neuron = {} if self.neuron == "lif" else {"neuron": self.neuron}
        return {
            "model_type": "spikegpt",
            "variant": _MODEL_TYPES[self.model_type],
            "spike_embedding": self.spike_embedding,
            **neuron,
            **_model_config(self),
        }

    @classmethod
    def from_model_config(cls, config: dict[str, object], **options: object) -> SpikeGPTConfig:
        """Read the ``config.json`` of a model folder; ``options`` are fields it does not hold."""
        if config.get("model_type") != "spikegpt":
            raise OptionError(f"model_type is {config.get('model_type')!r}; needed is 'spikegpt'")
        variant = config.get("variant", "rwkv")
        names = {value: key for key, value in _MODEL_TYPES.items()}
        if variant not in names:
            raise OptionError(f"variant is {variant!r}; known are {sorted(names)}")
        values: dict[str, object] = {
            "model_type": names[str(variant)],
            "spike_embedding": config.get("spike_embedding", True),
            "neuron": config.get("neuron", "lif"),
        }
        return cls(**(values | _fields_of(cls, config, options)))  # type: ignore[arg-type]


@dataclass
class RWKV4Config:
    """Shape and options of an RWKV-4; the sizes are those of the published 169M model.

    Args:
        vocab_size: tokens the model knows.
        ctx_len: tokens per training window; generation has no limit.
        n_layer: blocks.
        n_embd: channels of the residual stream.
        n_ffn: hidden width of the feed-forward parts; 0 means ``4 * n_embd``.
        l2wrap: strength of L2Wrap, see ``loss.head_loss``.
        fused: run the engine's kernels; False takes the plain-torch loops.
    """

    vocab_size: int = 50277
    ctx_len: int = 1024
    n_layer: int = 12
    n_embd: int = 768
    n_ffn: int = 0
    l2wrap: float = 1e-4
    fused: bool = True

    def __post_init__(self) -> None:
        _check_sizes(self)

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the feed-forward parts."""
        return self.n_ffn or 4 * self.n_embd

    def to_model_config(self) -> dict[str, object]:
        """Return the ``config.json`` of a model folder."""
        return {"model_type": "rwkv4", **_model_config(self)}

    @classmethod
    def from_model_config(cls, config: dict[str, object], **options: object) -> RWKV4Config:
        """Read the ``config.json`` of a model folder; ``options`` are fields it does not hold."""
        if config.get("model_type") not in ("rwkv4", "rwkv"):
            raise OptionError(f"model_type is {config.get('model_type')!r}; needed is 'rwkv4'")
        return cls(**_fields_of(cls, config, options))  # type: ignore[arg-type]
