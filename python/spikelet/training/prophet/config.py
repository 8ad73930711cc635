"""Shape and training of a prophet. Without torch: the command line shows it at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spikelet.errors import OptionError
from spikelet.training.trainer_config import TrainerConfig

_BLOCKS = ("rwkv4", "spikegpt")
LOSSES = ("kl", "acceptance", "ce")


@dataclass
class ProphetConfig:
    """Shape of a prophet.

    Args:
        block: ``"rwkv4"``, or ``"spikegpt"``: the same with neurons.
        n_layer: blocks.
        n_embd: channels; 0 means half of the model's.
        n_ffn: hidden width of the feed-forward parts; 0 means ``n_embd``.
        draft_vocab: how many tokens it can guess, the most frequent of its training text; 0 means a
            quarter of the vocabulary, but at least 256 and at most 8192.
        tied_head: take the model's own head, at the rows of these tokens, in place of a head that
            is trained along.
        num_leading: hidden states of the model that a draft begins with.
        ctx_len: tokens per training window.
    """

    block: str = "rwkv4"
    n_layer: int = 1
    n_embd: int = 0
    n_ffn: int = 0
    draft_vocab: int = 0
    tied_head: bool = False
    num_leading: int = 2
    ctx_len: int = 256

    def __post_init__(self) -> None:
        if self.block not in _BLOCKS:
            raise OptionError(f"block is {self.block!r}; known are {sorted(_BLOCKS)}")
        for name, least in (("n_layer", 1), ("num_leading", 1), ("ctx_len", 8)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; at least {least} is needed")
        for name in ("n_embd", "n_ffn", "draft_vocab"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} is {getattr(self, name)}; 0 or more is needed")

    def for_model(self, hidden_size: int, vocab_size: int) -> ProphetConfig:
        """Return the shape with a number in place of every 0, for a model of these sizes."""
        n_embd = self.n_embd or max(1, hidden_size // 2)
        draft_vocab = self.draft_vocab or min(8192, max(256, vocab_size // 4))
        return replace(
            self,
            n_embd=n_embd,
            n_ffn=self.n_ffn or n_embd,
            draft_vocab=min(draft_vocab, vocab_size),
        )


@dataclass
class ProphetTrainerConfig(TrainerConfig):
    """Options of a prophet's training: those of ``TrainerConfig``, some with other defaults.

    Args:
        loss: ``"kl"`` (the model's own distribution is the target), ``"acceptance"`` (from ``"kl"``
            over to the share of drafts that would be accepted, as that grows) or ``"ce"`` (the
            text is the target).
        num_steps: tokens of a draft in training, each from the prophet's own hidden state before.
        step_decay: weight of each guess of a draft against the one before.
        temperature: at which the model's and the prophet's distributions are compared.
    """

    loss: str = "kl"
    num_steps: int = 4
    step_decay: float = 0.8
    temperature: float = 1.0
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: str = "trapezoid"
    decay_share: float = 0.5
    carry_state: bool = True
    eval_iters: int = 8
    save_step_interval: int = 0
    log_step_interval: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise OptionError(f"loss is {self.loss!r}; known are {sorted(LOSSES)}")
        if self.num_steps < 1:
            raise OptionError(f"num_steps is {self.num_steps}; at least 1 is needed")
        for name in ("step_decay", "temperature"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be above 0")
