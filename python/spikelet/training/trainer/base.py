"""What every trainer has: a name and a folder, configurations, a log, checkpoints, resume.

A subclass brings the loop (``train``), and ``validate`` where it has validation::

    class MyTrainer(Trainer):
        def train(self, train_dataset, val_dataset=None):
            self.optimizer = self._get_optimizer()
            for step, (x, y) in enumerate(loader, start=self.current_step):
                ...
                self.current_step = step
                self._auto_save_pretrained()
                self._auto_validate(val_dataset)

    Trainer.register("MyModel", MyTrainer)   # now Trainer(MyModel(...), config) makes a MyTrainer
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import os
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from spikelet.errors import OptionError
from spikelet.training import runs
from spikelet.training.errors import DataError, TrainingError
from spikelet.training.files import write_text
from spikelet.training.forks import apply_fork, fingerprint, fork_folder
from spikelet.training.trainer import checkpoint as files
from spikelet.training.trainer.distributed import World, join_world, wait_for_all
from spikelet.training.trainer.log import (
    CSVLogger,
    LogFieldnames,
    TensorBoard,
    as_dict,
    columns,
    trim_csv,
)
from spikelet.training.trainer_config import TrainerConfig

if TYPE_CHECKING:
    from types import TracebackType

    from torch import nn
    from typing_extensions import Self

    from spikelet.training.trainer.optim import Optimizer


class Trainer:
    """Trains a model under a name; see the module's text for how to write one.

    Called itself, it makes the trainer that is registered for the class of ``model``.

    Args:
        model: a module; its ``config``, where it has one, is saved.
        config: a ``TrainerConfig``; it may also stand behind the tokenizer.
        tokenizer: saved beside the model.
        log_fieldnames: a dataclass whose fields are the columns of ``train_log.csv``.
        resume: ``"name"`` or ``"name:checkpoint"``. The run's own name goes on with step and
            optimiser; another's name takes its weights only and starts at step 0.
        fork: name of a folder in ``home()/forks`` with edited code for parts of the model.
        enable_server: show the log on a page while training.
        server_port: of that page; ``server_prot`` is DarwinKit's spelling.
        root: folder of the runs, in place of the property ``root``.
    """

    _subclasses: ClassVar[dict[str, type[Trainer]]] = {}
    _visual_series: ClassVar[dict[str, list[str]]] = {"train_loss": ["step", "train_loss"]}
    _log_fieldnames: ClassVar[type] = LogFieldnames
    _first_logged_step: ClassVar[int] = 0
    """What the log calls the first step; the language models' log counts steps done."""

    def __new__(cls, model: nn.Module, *_args: Any, **_options: Any) -> Any:
        """Make the trainer that is registered for the model, unless a subclass is asked for."""
        if cls is Trainer:
            for kind in type(model).__mro__:
                if kind.__name__ in Trainer._subclasses:
                    return super().__new__(Trainer._subclasses[kind.__name__])
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        config: TrainerConfig | None = None,
        tokenizer: Any = None,
        log_fieldnames: type | None = None,
        resume: str | None = None,
        fork: str | None = None,
        enable_server: bool = False,
        server_port: int = 8000,
        server_prot: int | None = None,
        root: Path | None = None,
    ) -> None:
        self.config, self.tokenizer = _config_and_tokenizer(args, config, tokenizer)
        self._root = root
        self.world = join_world(self.config.device_num)
        self.device = resolve_device(self.config, self.world)
        self.model: Any = model.to(self.device)
        self.max_step = self._run_steps()
        self.save_step_interval = self.config.save_step_interval
        self.eval_iters = self.config.eval_iters
        self.eval_step_interval = self.config.eval_step_interval
        self.current_step = 0
        self._counted_step = 0  # steps done at the last call of _auto_save_pretrained
        self._optimizer: Optimizer | None = None
        self._saved_optimizer: dict[str, Any] | None = None
        self._entered = 0

        self.resume = resume
        self.resume_key: str | None = None
        self.resume_ckpt: str | None = None
        if resume is not None:
            self.resume_key, self.resume_ckpt = runs.parse_resume(resume)
        self.continues = resume is not None and self.resume_key == self.config.name
        """Whether a run goes on, rather than a new one starting from its weights."""
        if self.is_name_exist and not self.continues:
            raise TrainingError(
                f"{self.run_directory} holds a run already; choose another name, or "
                f"resume={self.config.name!r} to go on with it"
            )
        self.fork = fork or self._fork_of_resumed()
        self._apply_fork()
        self._resume()
        wait_for_all(self.world)  # now that all have read it, the first changes the folder
        self._log_columns = columns(log_fieldnames or self._log_fieldnames)
        self._init_folder()
        path = None if self.save_directory is None else self.save_directory / "train_log.csv"
        self.csv_logger = CSVLogger(path, self._log_columns)
        self._tensorboard = self._init_tensorboard()
        if enable_server:
            self._start_server(server_port if server_prot is None else server_prot)

    @staticmethod
    def register(name: str, subclass: type[Trainer]) -> None:
        """Let ``Trainer(model, ...)`` make a ``subclass`` for models whose class has this name."""
        if not (isinstance(subclass, type) and issubclass(subclass, Trainer)):
            raise OptionError(f"{subclass!r} is not a subclass of Trainer")
        known = Trainer._subclasses.setdefault(name, subclass)
        if known is not subclass:
            warnings.warn(
                f"a trainer for {name} is registered already ({known.__qualname__}); it stays",
                stacklevel=2,
            )

    def _run_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.config.max_step

    # Where things lie

    @property
    def root(self) -> Path:
        """Folder of the runs; a subclass may return its own."""
        return runs.runs_root() if self._root is None else self._root

    @property
    def run_directory(self) -> Path | None:
        """Folder of this run; None without a name, and in all processes but the first."""
        if self.config.name is None or not self.world.is_first:
            return None
        return runs.run_folder(self.config.name, self.root)

    @property
    def save_directory(self) -> Path | None:
        """Where configurations, log and checkpoints go."""
        return None if self.run_directory is None else self.run_directory / "training"

    def _saved_as(self, name: str) -> Path | None:
        return None if self.save_directory is None else self.save_directory / name

    @property
    def fork_directory(self) -> Path | None:
        """Folder of the changed code."""
        return None if self.fork is None else fork_folder(self.fork)

    @property
    def is_name_exist(self) -> bool:
        """Whether there is a run of this name."""
        folder = self.run_directory
        if folder is None:
            return False
        training = runs.training_folder(folder)
        return (training / "trainer_config.json").exists() or bool(runs.checkpoints(folder))

    @property
    def model_config_save_path(self) -> Path | None:
        """The model's configuration."""
        return self._saved_as("config.json")

    modle_config_save_path = model_config_save_path  # DarwinKit's spelling

    @property
    def trainer_config_save_path(self) -> Path | None:
        """The configuration of training."""
        return self._saved_as("trainer_config.json")

    @property
    def external_config_save_path(self) -> Path | None:
        """Class of the model, series of charts, fork."""
        return self._saved_as("external_config.json")

    @property
    def tokenizer_save_path(self) -> Path | None:
        """Folder of the tokenizer."""
        return self._saved_as("tokenizer")

    @property
    def model_code_archive_path(self) -> Path | None:
        """Copy of the source of the model's class."""
        return self._saved_as("model.py")

    # The beginning of a run

    def _init_folder(self) -> None:
        folder = self.save_directory
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_remains(folder)
        if self.continues:
            last = self.current_step - 1 + self._first_logged_step
            trim_csv(folder / "train_log.csv", last, self._log_columns)
            self._set_later_aside(folder)
        else:
            self._archive_model_code()
        self._save_tokenizer()
        self._save_json(self.model_config_save_path, config_values(self.model))
        external: dict[str, Any] = {
            "model_class": type(self.model).__name__,
            "series": self._visual_series,
            "fork": self.fork,
        }
        if self.fork_directory is not None:
            external["fork_sha256"] = fingerprint(self.fork_directory)
        self._save_json(self.external_config_save_path, external)
        # Last: it says that there is a run.
        self._save_json(self.trainer_config_save_path, dataclasses.asdict(self.config))

    def _set_later_aside(self, folder: Path) -> None:
        """Move the checkpoints after the one that the run goes on from to ``superseded/``.

        Otherwise they would be taken for the newest. The final one becomes one of many when the
        run has been made longer.
        """
        for path in runs.checkpoints(folder.parent):
            step = runs.step_of(path)
            if step == math.inf:
                step = int(files.read_checkpoint(path)["current_step"])
            if step > self.current_step:
                aside = folder / "superseded"
                aside.mkdir(exist_ok=True)
                path.replace(aside / f"{path.stem}-{path.stat().st_mtime_ns}.pth")
            elif path.stem == runs.FINAL and step < self.max_step:
                numbered = folder / f"iter-{step}-ckpt.pth"
                if numbered.exists():
                    path.unlink()
                else:
                    path.replace(numbered)

    def _save_json(self, path: Path | None, value: dict[str, Any] | None) -> None:
        if path is not None and value is not None:
            write_text(path, json.dumps(value, indent=1, default=str) + "\n")

    def _save_tokenizer(self) -> None:
        folder = self.tokenizer_save_path
        if folder is None or self.tokenizer is None or folder.exists():
            return
        temporary = folder.with_name(".tokenizer")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_tokenizer(self.tokenizer, temporary)
        temporary.rename(folder)

    def _archive_model_code(self) -> None:
        """Copy the file in which the model's class stands; it may have none, as in a console."""
        path = self.model_code_archive_path
        if path is None:
            return
        kind = type(self.model)
        source = ""
        for thing in (inspect.getmodule(kind), kind):
            with contextlib.suppress(OSError, TypeError):
                source = source or inspect.getsource(thing)  # type: ignore[arg-type]
        if source:
            write_text(path, source)

    def _apply_fork(self) -> None:
        if self.fork_directory is not None:
            apply_fork(self.model, self.fork_directory)

    def _init_tensorboard(self) -> TensorBoard | None:
        if not self.config.tensorboard or self.save_directory is None:
            return None
        return TensorBoard(self.save_directory / "tensorboard")

    def _start_server(self, port: int) -> None:
        if self.save_directory is None:
            return
        from spikelet.training import live

        self.server = live.start(self.save_directory, port)
        self.server_port = self.server.port
        sys.stderr.write(f"{self.server} shows this run\n")

    # Resuming

    def _resumed_folder(self) -> Path | None:
        """Folder of the run to resume from, one of DarwinKit's own included."""
        if self.resume_key is None:
            return None
        root = self.root
        folder = runs.find_run(self.resume_key, None if root == runs.runs_root() else root)
        if self.continues and runs.training_folder(folder) == folder:
            raise TrainingError(
                f"{folder} is a run of DarwinKit, which is read and never changed: under another "
                f"name, resume={self.resume!r} starts from its weights"
            )
        return folder

    def _fork_of_resumed(self) -> str | None:
        if not self.continues:
            return None
        folder = self._resumed_folder()
        path = None if folder is None else runs.training_folder(folder) / "external_config.json"
        return runs.read_json(path).get("fork") if path is not None and path.exists() else None

    def _resume(self) -> None:
        folder = self._resumed_folder()
        if folder is None:
            return
        if self.continues and self.resume_ckpt is None and not runs.checkpoints(folder):
            return  # killed before its first checkpoint: it begins again
        path = runs.find_checkpoint(folder, self.resume_ckpt)
        saved = files.read_checkpoint(path)
        self._restore(saved, path)

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        """Take over a checkpoint: all of it when the run goes on, else its weights."""
        try:
            self.model.load_state_dict(saved["state_dict"], strict=True)
        except RuntimeError as error:
            raise TrainingError(f"{path} does not fit the model: {error}") from error
        if self.continues:
            self.current_step = self._counted_step = int(saved["current_step"])
            self._saved_optimizer = saved.get("optimizer_state_dict")

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser. One that is assigned to a resumed trainer takes over the saved moments."""
        if self._optimizer is None:
            raise AttributeError("optimizer is set by train()")
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        if self._saved_optimizer is not None:
            files.restore_optimizer(optimizer, self.model, self._saved_optimizer)
            self._saved_optimizer = None

    # What a loop calls

    def log(self, row: Any) -> None:
        """Append a row to ``train_log.csv``, and to TensorBoard's log if that is on."""
        self.csv_logger.log(row)
        if self._tensorboard is not None:
            self._tensorboard.log(row, int(as_dict(row).get("step", self.current_step)))

    def _steps_done(self) -> int:
        """Steps done, for loops that set ``current_step`` to the step just done or to the next."""
        if self.current_step == self._counted_step:
            return self.current_step
        return self.current_step + 1

    def save_pretrained(self, checkpoint: str = "complete") -> None:
        """Write a checkpoint of that name. One that is there already is never overwritten."""
        self._save(checkpoint, self._steps_done())

    def _save(self, checkpoint: str, step: int) -> Path | None:
        stem = runs.valid_name(checkpoint.removesuffix(".pth"), "checkpoint")
        content = self._checkpoint(step)  # every process has its part in it
        path = self._saved_as(f"{stem}.pth")
        if path is None:
            return None
        if path.exists():
            raise TrainingError(f"{path} is there already; step {step} needs another name")
        files.write_checkpoint(path, content)
        self._make_room()
        return path

    def _checkpoint(self, step: int) -> dict[str, Any]:
        content: dict[str, Any] = {
            "model_class": type(self.model).__name__,
            "state_dict": self.model.state_dict(),
            "current_step": step,
        }
        if self._optimizer is not None:
            content["optimizer_state_dict"] = files.optimizer_state(self._optimizer, self.model)
        return content

    def _make_room(self) -> None:
        """Delete the oldest checkpoints beyond ``keep_checkpoints``; named ones stay."""
        if self.run_directory is None or not self.config.keep_checkpoints:
            return
        known = [path for path in runs.checkpoints(self.run_directory) if _is_numbered(path)]
        for old in known[: -self.config.keep_checkpoints]:
            old.unlink(missing_ok=True)

    def _auto_save_pretrained(self) -> None:
        """Save where ``save_step_interval`` and ``max_step`` say so; call it after every step."""
        done = self._counted_step = self.current_step + 1
        interval = self.save_step_interval
        if interval > 0 and (done % interval == 0 or done == self.max_step):
            self._save(f"iter-{done}-ckpt", done)

    def _auto_validate(self, val_dataset: Any) -> None:
        """Validate where ``eval_step_interval`` says so, and at the end."""
        done, interval = self.current_step + 1, self.eval_step_interval
        due = done == self.max_step or (interval > 0 and done % interval == 0)
        if val_dataset is not None and due:
            self.validate(val_dataset)

    def log_exception(self, error: BaseException) -> None:
        """Write the traceback of an error to ``exception.log``."""
        path = self._saved_as("exception.log")
        if path is not None:
            text = "".join(traceback.format_exception(error))
            with contextlib.suppress(OSError):  # a full disk is often what the error is about
                path.write_text(text, encoding="utf-8")

    def __enter__(self) -> Self:
        """Mark the run as running."""
        path = self._saved_as("pid")
        if path is not None and not self._entered and self.run_directory is not None:
            if runs.read_run(self.run_directory).running and path.read_text() != str(os.getpid()):
                raise TrainingError(
                    f"process {path.read_text()} is training {self.run_directory} at this moment"
                )
            path.write_text(str(os.getpid()))
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run as not running; an error leaves its traceback."""
        if isinstance(error, Exception):
            self.log_exception(error)
        self._entered -= 1
        if self._tensorboard is not None and not self._entered:
            self._tensorboard.close()
        path = self._saved_as("pid")
        if path is not None and not self._entered:
            path.unlink(missing_ok=True)

    # What a subclass brings

    def _get_optimizer(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no _get_optimizer")

    def validate(self, val_dataset: Any) -> Any:
        """Measure the model on validation data."""
        raise NotImplementedError(f"{type(self).__name__} has no validate")

    def train(self, train_dataset: Any, val_dataset: Any = None) -> Any:
        """Run the loop."""
        raise NotImplementedError(
            f"no trainer is registered for {type(self.model).__name__}; write a subclass of "
            "Trainer with train(), and Trainer.register(name, subclass)"
        )


def _config_and_tokenizer(
    args: tuple[Any, ...], config: TrainerConfig | None, tokenizer: Any
) -> tuple[TrainerConfig, Any]:
    """Sort positional arguments by type: both ``(config)`` and ``(tokenizer, config)`` are used."""
    for value in args:
        if isinstance(value, TrainerConfig) and config is None:
            config = value
        elif tokenizer is None:
            tokenizer = value
        else:
            raise TypeError(f"unexpected argument {value!r}")
    if not isinstance(config, TrainerConfig):
        raise OptionError(f"config is {config!r}; a TrainerConfig is needed")
    return config, tokenizer


def resolve_device(config: TrainerConfig, world: World) -> torch.device:
    """Return the device that ``config.device`` means, and put its name there.

    The name replaces ``"auto"`` because loops write ``tensor.to(self.config.device)``.
    """
    name = config.device or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            raise OptionError(
                f"device is {config.device!r}, but torch sees {count or 'no'} GPU"
                f"{'s' if count > 1 else ''}; 'cpu' trains without, 'auto' takes what there is"
            )
        if world.size > 1:
            name = f"cuda:{world.local_rank % count}"
        torch.cuda.set_device(torch.device(name))
    config.device = name
    return torch.device(name)


def config_values(model: nn.Module) -> dict[str, Any] | None:
    """Return the fields of ``model.config``, where it is a dataclass or a plain object."""
    config: Any = getattr(model, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return dict(vars(config)) if hasattr(config, "__dict__") else None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer into a folder: as its own class does, or as training does."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
        return
    from spikelet.training.data import as_tokenizer

    # One that cannot be saved can be trained with, and has to be given again to load the run.
    with contextlib.suppress(DataError):
        as_tokenizer(tokenizer).save(folder)


def _is_numbered(checkpoint: Path) -> bool:
    return checkpoint.stem.startswith("iter-")
