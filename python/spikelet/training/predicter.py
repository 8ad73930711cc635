"""Prediction with what a ``Trainer`` saved: by the name of the run, from its newest checkpoint.

    predicter = Predicter.from_pretrained("fox")
    for piece in predicter.predict("Once upon a time", ctx_len=256):
        print(piece, end="", flush=True)

For a module of one's own, write a subclass with ``get_model`` and ``predict`` and register it under
the name of the module's class. Language models are here already: they write through the engine, or
step by step through the torch module where that runs edited code (``forks``) or on a GPU.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import spikelet
from spikelet.errors import OptionError
from spikelet.training import forks, runs
from spikelet.training.config import RWKV4Config, SpikeGPTConfig
from spikelet.training.data.tokenizers import (
    ObjectTokenizer,
    TextTokenizer,
    as_tokenizer,
    load_tokenizer,
)
from spikelet.training.errors import DataError, TrainingError
from spikelet.training.export import export_model
from spikelet.training.models.rwkv4 import RWKV4
from spikelet.training.models.spikegpt import SpikeGPT
from spikelet.training.stepwise import step_by_step
from spikelet.training.trainer.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from torch import nn

DEFAULT_CTX_LEN = 1024
_ENOUGH = 8
"""Ids before a new one that can have a part in its text."""


class Predicter:
    """What every predicter has: a name, the module, and where it came from.

    Called itself, or through ``Predicter.from_pretrained``, it makes the predicter that is
    registered for the class of the module.

    Args:
        name: of the run.
        model: the module.
        device: where the module is put; None and ``"auto"``: a GPU if there is one.
    """

    _subclasses: ClassVar[dict[str, type[Predicter]]] = {}

    def __new__(  # noqa: PYI034 - what it makes is of another class
        cls, name: str, model: nn.Module, *_args: Any, **_options: Any
    ) -> Predicter:
        """Make the predicter that is registered for the model, unless a subclass is asked for."""
        kind = Predicter._subclasses.get(type(model).__name__) if cls is Predicter else None
        return super().__new__(kind or cls)

    def __init__(
        self, name: str, model: nn.Module, device: str | torch.device | None = None
    ) -> None:
        self.name = name
        self.device = _resolve_device(device)
        self.model = model.to(self.device).eval()

    @staticmethod
    def register(name: str, kind: type[Predicter]) -> None:
        """Make ``kind`` the predicter of modules whose class is called ``name``.

        A name that is taken stays with its first predicter, with a warning.
        """
        if not (isinstance(kind, type) and issubclass(kind, Predicter)):
            raise ValueError(f"{kind!r} is not a subclass of Predicter")  # noqa: TRY004 - as DarwinKit
        if Predicter._subclasses.setdefault(name, kind) is not kind:
            known = Predicter._subclasses[name].__name__
            warnings.warn(f"{name} has a predicter already, {known}, and keeps it", stacklevel=2)

    # Where things are

    @classmethod
    def get_root(cls) -> Path:
        """Folder of the runs; a subclass may return its own."""
        return runs.runs_root()

    @classmethod
    def get_run_directory(cls, name: str) -> Path:
        """Folder of a run, one of DarwinKit's own included where the root is the usual one."""
        root = cls.get_root()
        return runs.find_run(name, None if root == runs.runs_root() else root)

    @classmethod
    def get_save_directory(cls, name: str) -> Path:
        """Folder of a run's configurations and checkpoints."""
        return runs.training_folder(cls.get_run_directory(name))

    @classmethod
    def get_checkpoint(cls, name: str, checkpoint: str | None = None) -> Path:
        """File of one checkpoint; None: the newest by time."""
        return runs.find_checkpoint(cls.get_run_directory(name), checkpoint)

    @classmethod
    def get_fork_directory(cls, fork: str | None) -> Path | None:
        """Folder of a fork's code."""
        return None if not fork else forks.fork_folder(fork)

    @classmethod
    def get_model_config_json(cls, name: str) -> dict[str, Any]:
        """Configuration of the model."""
        return runs.read_json(cls.get_save_directory(name) / "config.json")

    @classmethod
    def get_trainer_config_json(cls, name: str) -> dict[str, Any]:
        """Configuration of the training."""
        return runs.read_json(cls.get_save_directory(name) / "trainer_config.json")

    @classmethod
    def get_external_config_json(cls, name: str) -> dict[str, Any] | None:
        """Class of the model, series of charts, fork; None where it was not written."""
        path = cls.get_save_directory(name) / "external_config.json"
        return runs.read_json(path) if path.exists() else None

    # Loading

    @classmethod
    def get_model(cls, name: str, checkpoint: str | None = None) -> nn.Module:
        """Make the module with the weights of a checkpoint. Subclasses bring this."""
        kind = cls._registered(name, checkpoint)
        if kind.get_model.__func__ is Predicter.get_model.__func__:  # type: ignore[attr-defined]
            raise NotImplementedError(f"{kind.__name__} has no get_model")
        return kind.get_model(name, checkpoint)

    @classmethod
    def _registered(cls, name: str, checkpoint: str | None) -> type[Predicter]:
        """Return the predicter for the class that the run was trained with."""
        path = cls.get_checkpoint(name, checkpoint)
        external = cls.get_external_config_json(name) or {}
        trained = external.get("model_class") or read_checkpoint(path).get("model_class")
        if trained not in Predicter._subclasses:
            known = ", ".join(sorted(Predicter._subclasses))
            raise ValueError(
                f"{name} holds a {trained}, for which no predicter is registered (known: {known}); "
                "see Predicter.register"
            )
        return Predicter._subclasses[trained]

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | None = None,
        checkpoint: str | None = None,
        **options: Any,
    ) -> Any:
        """Load a run.

        Args:
            name: of the run.
            device: ``"cpu"``, ``"cuda"`` or ``"auto"``; None leaves it to the predicter.
            checkpoint: name of one of the run's checkpoints; None: the newest by time.
            options: go to the predicter's constructor.

        Raises:
            NotFoundError: there is no such run or checkpoint; the message names those there are.
        """
        if cls is Predicter:
            kind = cls._registered(name, checkpoint)
            return kind.from_pretrained(name, device, checkpoint, **options)
        model = cls.get_model(name, checkpoint)
        model = cls.inject_script(model, name)
        if device is not None:
            options["device"] = device
        return cls(name, model, **options)

    @classmethod
    def inject_script(cls, model: nn.Module, name: str) -> nn.Module:
        """Give the module the code of the fork that the run was trained with, if any."""
        external = cls.get_external_config_json(name) or {}
        folder = cls.get_fork_directory(external.get("fork"))
        if folder is not None:
            forks.apply_fork(model, folder)
            if external.get("fork_sha256") not in (None, forks.fingerprint(folder)):
                text = f"the code of fork {folder.name!r} is not what it was when {name} trained"
                warnings.warn(text, stacklevel=2)
        return model

    def predict(self, *args: Any, **options: Any) -> Any:
        """Predict. Subclasses bring this."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")


class LanguageModelPredicter(Predicter):
    """Writes text with SpikeGPT and RWKV4.

    Args:
        name: of the run.
        model: the module.
        tokenizer: what ``as_tokenizer`` takes; None: the run's own.
        device: ``"cpu"`` (the default) is the engine; ``"cuda"`` steps through the torch module.
        forked: the module runs code of a fork, which the engine does not know.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: object = None,
        device: str | torch.device | None = "cpu",
        forked: bool = False,
    ) -> None:
        super().__init__(name, model, device)
        self.tokenizer = self.get_tokenizer(name) if tokenizer is None else as_tokenizer(tokenizer)
        self.forked = forked
        self._engine: spikelet.Model | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | None = None,
        checkpoint: str | None = None,
        **options: Any,
    ) -> Any:
        """Load a run; see ``Predicter.from_pretrained``. ``tokenizer=`` replaces the run's own."""
        fork = (cls.get_external_config_json(name) or {}).get("fork")
        return super().from_pretrained(name, device, checkpoint, forked=bool(fork), **options)

    @classmethod
    def get_model(cls, name: str, checkpoint: str | None = None) -> nn.Module:
        """Make the module with the weights of a checkpoint."""
        path = cls.get_checkpoint(name, checkpoint)
        saved = read_checkpoint(path)
        trained = saved.get("model_class")
        if trained not in _LANGUAGE_MODELS:
            raise TrainingError(f"{path} holds a {trained}; known: {', '.join(_LANGUAGE_MODELS)}")
        module, config = _LANGUAGE_MODELS[trained]
        values = cls.get_model_config_json(name)
        unknown = sorted(set(values) - {field.name for field in fields(config)})
        if unknown:
            raise OptionError(f"the configuration of {name} has unknown keys {unknown}")
        with torch.device("meta"):  # drawing matrices that are replaced at once takes seconds
            model: nn.Module = module(config(**values))
        weights = {name: value.float() for name, value in saved["state_dict"].items()}
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise TrainingError(f"{path} does not fit the configuration: {error}") from error
        return model

    @classmethod
    def get_tokenizer(cls, name: str) -> TextTokenizer:
        """Return the tokenizer that the run was trained with."""
        folder = cls.get_save_directory(name) / "tokenizer"
        if folder.is_dir() and any(folder.iterdir()):
            return load_tokenizer(folder)
        raise DataError(
            f"{name} has no tokenizer ({folder}), as some cannot be written; give the one it was "
            "trained with: from_pretrained(name, tokenizer=...)"
        )

    @property
    def engine(self) -> spikelet.Model:
        """The engine's model with these weights, made when first asked for."""
        if self._engine is None:
            # The folder is gone as soon as the engine has read it: a run keeps no second copy.
            with tempfile.TemporaryDirectory(prefix="spikelet-") as folder:
                model: Any = self.model
                export_model(model, Path(folder), self._engine_tokenizer())
                self._engine = spikelet.load(folder, device="cpu")
        return self._engine

    def _engine_tokenizer(self) -> TextTokenizer | None:
        """The tokenizer, if it can be written in a form that the engine reads."""
        return None if isinstance(self.tokenizer, ObjectTokenizer) else self.tokenizer

    def predict(
        self,
        prompt: str,
        ctx_len: int | None = None,
        *,
        max_new_tokens: int | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Write on after a text: a generator of pieces, each as soon as its tokens are drawn.

        The text ends at the end-of-text token, or at the greatest length.

        Args:
            prompt: is read first and sets the state; it is not part of what is given back.
            ctx_len: most tokens of prompt and new text together. None: 1024, or without limit
                where ``max_new_tokens`` is given.
            max_new_tokens: most tokens of new text.
            sampling: ``temperature``, ``top_p``, ``seed`` and the other options of
                ``Model.generate``; the torch module knows those three.

        Raises:
            OptionError: the prompt alone has ``ctx_len`` tokens or more, or an option that cannot
                be.
        """
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]
        if ctx_len is None and max_new_tokens is None:
            ctx_len = DEFAULT_CTX_LEN
        limits = [] if max_new_tokens is None else [max_new_tokens]
        if ctx_len is not None:
            if len(ids) >= ctx_len:
                raise OptionError(
                    f"the prompt has {len(ids)} tokens and ctx_len is {ctx_len}, which counts "
                    "prompt and new text together: nothing could be written. max_new_tokens "
                    "counts new text only"
                )
            limits.append(ctx_len - len(ids))
        if not self.forked and self.device.type == "cpu":
            return self._by_engine(ids, min(limits), sampling)
        known = inspect.signature(step_by_step).parameters
        for name in sampling:
            if name not in known:
                raise OptionError(f"{name} is an option of the engine; the torch module has none")
        stop = [*sampling.pop("stop_ids", ()), self.tokenizer.eos_id]
        drawn = step_by_step(self.model, ids, min(limits), stop_ids=stop, **sampling)
        return pieces(drawn, self.tokenizer.decode, ids)

    def _by_engine(self, ids: list[int], count: int, sampling: dict[str, Any]) -> Iterator[str]:
        if self._engine_tokenizer() is not None:
            tokens = self.engine.generate(ids, max_new_tokens=count, **sampling)
            return (str(token) for token in tokens if token)
        stop = [*sampling.pop("stop_ids", ()), self.tokenizer.eos_id]
        tokens = self.engine.generate(ids, max_new_tokens=count, stop_ids=stop, **sampling)
        drawn = (token.id for token in tokens if token.id not in stop)  # the last may be one
        return pieces(drawn, self.tokenizer.decode, ids)


def pieces(
    ids: Iterator[int], decode: Callable[[list[int]], str], prompt: list[int]
) -> Iterator[str]:
    """Turn ids into pieces of text as they come; a character is given back when it is whole.

    What a tokenizer makes of an id may hang on those before (spaces, joined syllables), so each
    piece is the difference between a text with and without the new ids.
    """
    before = prompt[-_ENOUGH:]
    new: list[int] = []
    for one in ids:
        new.append(one)
        start, text = decode(before), decode(before + new)
        whole = not text.endswith("\ufffd") or len(new) >= _ENOUGH
        if len(text) > len(start) and whole:
            yield text[len(start) :]
            before, new = (before + new)[-_ENOUGH:], []
    rest = decode(before + new)[len(decode(before)) :] if new else ""
    if rest:
        yield rest


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device is {str(device)!r}, but torch sees no GPU; there is 'cpu'")
    return found


_LANGUAGE_MODELS: dict[Any, tuple[Any, Any]] = {
    "SpikeGPT": (SpikeGPT, SpikeGPTConfig),
    "GPT": (SpikeGPT, SpikeGPTConfig),  # DarwinKit's name of the class
    "RWKV4": (RWKV4, RWKV4Config),
}
for _name in _LANGUAGE_MODELS:
    Predicter.register(_name, LanguageModelPredicter)
