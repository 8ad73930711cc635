"""Training of language models: packed text in, a model folder out.

A run that is stopped at any moment and resumed goes on with the numbers it would have had: the
order of the data is a function of the position, and a checkpoint holds the weights, the optimiser,
the random states and what the next rows of the log need.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safetensors import SafetensorError

from spikelet.errors import OptionError
from spikelet.training import runs
from spikelet.training.data import Streams, TokenData, Windows, as_tokenizer, load_tokens
from spikelet.training.errors import DataError, TrainingError, cannot_write
from spikelet.training.export import export_model
from spikelet.training.models.activity import ActivityRecord
from spikelet.training.trainer import checkpoint as files
from spikelet.training.trainer.base import Trainer, config_values
from spikelet.training.trainer.batches import Batches
from spikelet.training.trainer.distributed import add_up, gather, wait_for_all
from spikelet.training.trainer.guard import LossGuard, not_finite, stop_message
from spikelet.training.trainer.interrupt import StopSignals
from spikelet.training.trainer.log import (
    CSVLogger,
    LanguageModelLog,
    append_json,
    as_dict,
    trim_csv,
    trim_json_lines,
)
from spikelet.training.trainer.optim import make_optimizer
from spikelet.training.trainer.progress import Display, perplexity, progress_text
from spikelet.training.trainer.schedule import learning_rate
from spikelet.training.trainer.step import Gradient, Stepper
from spikelet.training.trainer.validation import Validation, bits_per_byte, draw_sample, validate

if TYPE_CHECKING:
    import torch
    from torch import nn

_KEPT_ON_RESUME = ("seed", "optimizer", "carry_state")
"""Options that a resumed run cannot change without becoming another run."""


@dataclass
class Progress:
    """Where a run stands; all of it is in every checkpoint."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Read so far, by all processes."""
    windows: int = 0
    """Dealt so far: the position in the data."""
    seconds: float = 0.0
    """Spent in training steps, over all resumes."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last row of the log."""
    usual_losses: list[float] = field(default_factory=list)
    high_steps: int = 0
    """The last two: memory of ``LossGuard``."""


class LanguageModelTrainer(Trainer):
    """Trains SpikeGPT, RWKV4, and modules with their interface.

    That is ``step_loss``, ``forward(ids, targets)``, ``generate`` and ``config.ctx_len``. See
    ``Trainer`` for the arguments.

    Ctrl-C or SIGTERM ends ``train`` after the step in progress, with a checkpoint.
    """

    _visual_series: ClassVar[dict[str, list[str]]] = {
        "train_loss": ["step", "train_loss"],
        "val_loss": ["step", "val_loss"],
    }
    _log_fieldnames: ClassVar[type] = LanguageModelLog
    _first_logged_step = 1

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        self.progress = Progress()
        self.interrupted = False
        """Whether a signal ended the run before its last step."""
        self.last_validation: Validation | None = None
        self.data: TokenData | None = None
        self._saved_random: list[dict[str, Any]] = []
        self._saved_state: list[Any] = []
        self._stepper: Stepper | None = None
        self._newest_step = -1
        self._newest: Path | None = None
        self._out_of_turn: Path | None = None
        self._exported_step = -1
        super().__init__(model, *args, **options)
        self._switch_checkpointing()
        self.display = Display(silent=not self.world.is_first)

    def _switch_checkpointing(self) -> None:
        if hasattr(self.model, "gradient_checkpointing"):
            self.model.gradient_checkpointing = self.config.gradient_checkpointing
        elif self.config.gradient_checkpointing:
            raise OptionError(
                f"gradient_checkpointing: {type(self.model).__name__} has no such attribute"
            )

    # Lengths

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimiser step, over all processes."""
        return self.step_windows * int(self.model.config.ctx_len)

    @property
    def step_windows(self) -> int:
        """Windows of an optimiser step, over all processes."""
        config = self.config
        return config.grad_accumulation * config.batch_size * self.world.size

    @property
    def run_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.config.max_tokens or self.config.max_step * self.step_tokens

    def _run_steps(self) -> int:
        return -(-self.run_tokens // self.step_tokens)

    # The run

    def train(self, train_dataset: Any, val_dataset: Any = None) -> Progress:
        """Train to the end of the run, or to a signal.

        Args:
            train_dataset: whatever ``data.load_tokens`` takes: text files, a list of texts, a data
                set object, ``TokenData``.
            val_dataset: the same, to validate on; else every ``valid_every``-th document is held
                out.
        """
        data = self.data = self._tokens(train_dataset, val_dataset)
        with self, StopSignals(self.display.say) as signals:
            batches = Batches(
                self._dealer(data),
                self.config.batch_size,
                self.world,
                self.device,
                self.config.num_workers,
            )
            self.optimizer = self._get_optimizer()
            stepper = self._make_stepper(batches)
            self._stepper = stepper
            self._check_agreement()
            self._restore_carried_state(stepper)
            self._set_random_state()
            try:
                self._loop(stepper, signals)
            finally:
                batches.close()
                self.display.end()
            if not self.interrupted:
                self.save_pretrained()
            wait_for_all(self.world)  # whoever returns finds the files
        return self.progress

    def _tokens(self, train_dataset: Any, val_dataset: Any) -> TokenData:
        if self.tokenizer is None and not isinstance(train_dataset, TokenData):
            raise DataError("a tokenizer is needed to train on text: Trainer(model, tokenizer=...)")
        if not self.world.is_first:
            wait_for_all(self.world)  # the first tokenises, the others find it in the cache
        data = load_tokens(
            train_dataset,
            self.tokenizer,
            valid_every=self.config.valid_every,
            val_source=val_dataset,
        )
        if self.world.is_first:
            wait_for_all(self.world)
        if data.vocab_size > self._vocab_size:
            raise DataError(
                f"the tokenizer has {data.vocab_size} tokens, the model's vocab_size is "
                f"{self._vocab_size}"
            )
        return data

    @property
    def _vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    def _check_agreement(self) -> None:
        """All processes must have resumed from the same step, which a shared disk brings about."""
        total = add_up(self.world, [self.progress.step])[0]
        if total != self.progress.step * self.world.size:
            raise TrainingError(
                f"process {self.world.rank} goes on at step {self.progress.step}, others elsewhere"
                f": all need the same files in {self.root}"
            )

    def _dealer(self, data: TokenData) -> Windows | Streams:
        ctx_len, config = self.model.config.ctx_len, self.config
        if config.carry_state:
            rows = config.batch_size * self.world.size
            return Streams(data.train, ctx_len, rows, config.seed)
        return Windows(data.train, ctx_len, config.seed)

    def _get_optimizer(self) -> Any:
        return make_optimizer(self.model, self.config)

    def _make_stepper(self, batches: Batches) -> Stepper:
        return Stepper(self.model, self.optimizer, batches, self.config, self.world)

    def _set_random_state(self) -> None:
        """Seed every generator, each process differently; a resumed run takes its own states."""
        if self.world.rank < len(self._saved_random):
            files.restore_random_state(self._saved_random[self.world.rank])
        else:
            files.seed_everything(self.config.seed + 1_000_003 * self.world.rank)
        self._saved_random = []

    def _loop(self, stepper: Stepper, signals: StopSignals) -> None:
        progress = self.progress
        guard = LossGuard(progress.usual_losses, progress.high_steps)
        meter = _Meter(progress)
        saved_at = time.monotonic()
        while progress.step < self.max_step:
            started = time.monotonic()
            limit = self.config.save_seconds
            wishes = [
                float(signals.requested),
                # One clock decides for all processes.
                float(self.world.is_first and 0 < limit <= started - saved_at),
            ]
            record = self._record()
            gradient = stepper.gradient(progress.windows, record)
            loss, stop, save = add_up(self.world, [gradient.loss, *wishes])
            loss /= self.world.size
            self._check(loss, gradient.norm, guard)
            rate = learning_rate(self.config, progress.tokens + self.step_tokens, self.run_tokens)
            stepper.update(rate, gradient.norm)
            self.current_step = progress.step
            progress.step += 1
            progress.tokens += self.step_tokens
            progress.windows += self.step_windows
            progress.losses.append(loss)
            progress.usual_losses, progress.high_steps = list(guard.losses), guard.high
            progress.seconds += time.monotonic() - started

            self._report(gradient, rate, record, meter)
            self._auto_save_pretrained()
            if save or stop:
                self._save_out_of_turn()
                saved_at = time.monotonic()
            self.current_step = progress.step
            if stop and progress.step < self.max_step:
                self.interrupted = True
                return

    def _check(self, loss: float, norm: float, guard: LossGuard) -> None:
        """Stop a run that has gone wrong, before the optimiser takes the gradient in."""
        step = self.progress.step + 1
        if not (abs(loss) < float("inf") and abs(norm) < float("inf")):
            what = f"loss {loss:.4g}, gradient norm {norm:.4g}"
            raise stop_message(step, what, self.model, self._way_back(step - 1))
        if guard.exploded(loss):
            what = (
                f"loss {loss:.4g} after {guard.high} steps far above its median {guard.median:.4g}"
            )
            raise stop_message(step, what, self.model, self._way_back(step - guard.high))

    def _way_back(self, last_good: int) -> str:
        """Name the newest checkpoint of a step at which all was well."""
        folder = self.run_directory
        known = [] if folder is None else runs.checkpoints(folder)
        good = [path for path in known if runs.step_of(path) <= last_good]
        if not good:
            return "There is no earlier checkpoint; begin again with a lower learning_rate"
        return (
            f"The last good checkpoint is {good[-1]}: go on with "
            f"resume='{self.config.name}:{good[-1].stem}' and a lower learning_rate"
        )

    # What is written down

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_step_interval == 0 or self._is_validated(step)

    def _is_validated(self, step: int) -> bool:
        interval = self.eval_step_interval
        return step == self.max_step or (interval > 0 and step % interval == 0)

    def _record(self) -> ActivityRecord | None:
        wanted = self._is_logged(self.progress.step + 1) or self.config.spike_rate_penalty
        return ActivityRecord() if wanted else None

    def _report(
        self, gradient: Gradient, rate: float, record: ActivityRecord | None, meter: _Meter
    ) -> None:
        """Validate and write a row of the log, where one is due."""
        progress, data = self.progress, self.data
        if not self._is_logged(progress.step) or data is None:
            return
        row = LanguageModelLog(progress.step, progress.tokens, progress.seconds)
        row.train_loss = sum(progress.losses) / len(progress.losses)
        progress.losses.clear()
        row.perplexity = perplexity(row.train_loss)
        row.bits_per_byte = bits_per_byte(row.train_loss, data.train_sizes)
        row.learning_rate, row.grad_norm = rate, gradient.norm
        row.tokens_per_second = meter.speed()
        if record is not None:
            row.firing_rate, row.relu2_density = record.firing_rate, record.relu2_density
            self._log_layers(record.rates)
        if self._is_validated(progress.step) and len(data.valid) > 1:
            found = self.validate(data)
            row.val_loss, row.val_bits_per_byte = found.loss, found.bits_per_byte
            self._draw_sample()
        values = {k: v for k, v in as_dict(row).items() if k in self._log_columns}
        self.log(values | self._further_columns())
        last = progress.step == self.max_step
        left = (self.run_tokens - progress.tokens) / max(1e-9, row.tokens_per_second)
        text = self._progress_text(row, left)
        self.display.show(text, important=last or row.val_loss is not None)

    def _further_columns(self) -> dict[str, Any]:
        """Return what a subclass logs besides, at every row."""
        return {}

    def _progress_text(self, row: LanguageModelLog, seconds_left: float) -> str:
        return progress_text(row, self.max_step, seconds_left)

    def _log_layers(self, rates: dict[str, float]) -> None:
        path = self._saved_as("layers.csv")
        if path is not None and rates:
            CSVLogger(path, ["step", *rates]).log({"step": self.progress.step, **rates})
        if self._tensorboard is not None:
            self._tensorboard.log(rates, self.progress.step, "activity/")

    def validate(self, val_dataset: TokenData) -> Validation:
        """Measure the loss on the validation text of ``val_dataset``."""
        found = validate(self.model, val_dataset, self.config, self.world, self.device)
        self.last_validation = found
        return found

    def _draw_sample(self) -> None:
        path = self._saved_as("samples.jsonl")
        if not self.config.sample_tokens or self.tokenizer is None or path is None:
            return
        assert self.data is not None  # noqa: S101 - for the type checker
        text = draw_sample(self.model, as_tokenizer(self.tokenizer), self.data, self.config)
        where = {"step": self.progress.step, "tokens": self.progress.tokens}
        append_json(path, {**where, "prompt": self.config.sample_prompt, "text": text})

    def _init_folder(self) -> None:
        super()._init_folder()
        if self.continues and self.save_directory is not None:
            trim_csv(self.save_directory / "layers.csv", self.current_step)
            trim_json_lines(self.save_directory / "samples.jsonl", self.current_step)

    # Checkpoints

    def save_pretrained(self, checkpoint: str = "complete") -> None:
        """Write a checkpoint of that name, and the model folder; nothing when it is there already.

        A checkpoint of that name at another step is an error.
        """
        self._save(checkpoint, self.progress.step)

    def _save(self, checkpoint: str, step: int) -> Path | None:
        path = self._saved_as(f"{runs.valid_name(checkpoint, 'checkpoint')}.pth")
        if self._newest_step != step:
            if not_finite(self.model):
                raise stop_message(step, "not saved", self.model, self._way_back(step))
            path = super()._save(checkpoint, step)
            self._newest_step, self._newest = step, path
        elif path is not None and self._newest is not None and path != self._newest:
            files.link_checkpoint(self._newest, path)
        if self._exported_step != step:
            self._export()
            self._exported_step = step
        return path

    def _save_out_of_turn(self) -> None:
        """Save between the intervals; the checkpoint that was written so before makes room."""
        step = self.progress.step
        if self._newest_step == step:
            return
        before = self._out_of_turn
        self._out_of_turn = self._save(f"iter-{step}-ckpt", step)
        if before is not None:
            before.unlink(missing_ok=True)

    def _export(self) -> None:
        """Write the model folder that the engine loads, for models that it knows."""
        folder = self.run_directory
        # The engine does not know the code of a fork, and would compute something else.
        if folder is None or self.fork or not hasattr(self.model.config, "to_model_config"):
            return
        model: Any = self.model
        try:
            export_model(model, folder, self.tokenizer)
        except (OSError, SafetensorError) as error:
            raise cannot_write(folder / "model.safetensors", error) from error

    def _checkpoint(self, step: int) -> dict[str, Any]:
        random = gather(self.world, files.random_state())
        state = gather(self.world, self._carried_state())
        return super()._checkpoint(step) | {
            "progress": asdict(self.progress),
            "rng": random[0] if random else {},
            "rng_of_others": random[1:],
            "carried_state": state,
            "model_config": config_values(self.model),
            "trainer_config": asdict(self.config),
            "tokenizer_hash": self._tokenizer_hash,
        }

    @property
    def _tokenizer_hash(self) -> str | None:
        return None if self.tokenizer is None else as_tokenizer(self.tokenizer).hash

    def _carried_state(self) -> list[list[torch.Tensor]]:
        state = None if self._stepper is None else self._stepper.state
        return [[part.cpu() for part in layer] for layer in state or []]

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        if self.continues:
            self._check_resumable(saved, path)
        super()._restore(saved, path)
        if not self.continues:
            return
        self.progress.step = self.current_step
        self._newest_step, self._newest = self.current_step, path
        if "progress" in saved:
            known = {entry.name for entry in fields(Progress)}
            values = {name: value for name, value in saved["progress"].items() if name in known}
            self.progress = Progress(**values)
            self._saved_random = [saved["rng"], *saved.get("rng_of_others", [])]
            self._saved_state = saved.get("carried_state", [])
        else:  # DarwinKit's, which knows the step only
            self.progress.tokens = self.current_step * self.step_tokens
            self.progress.windows = self.current_step * self.step_windows

    def _check_resumable(self, saved: dict[str, Any], path: Path) -> None:
        before, now = saved.get("trainer_config", {}), asdict(self.config)
        kept = {name: (before[name], now[name]) for name in _KEPT_ON_RESUME if name in before}
        model = saved.get("model_config") or {}
        if "ctx_len" in model:
            kept["ctx_len"] = (model["ctx_len"], self.model.config.ctx_len)
        if self._tokenizer_hash and saved.get("tokenizer_hash"):
            kept["tokenizer"] = (saved["tokenizer_hash"], self._tokenizer_hash)
        for name, (was, is_now) in kept.items():
            if was != is_now:
                raise TrainingError(
                    f"{path}: {name} was {was!r}, now {is_now!r}: a run that goes on must keep it; "
                    "under a new name it starts from these weights"
                )

    def _restore_carried_state(self, stepper: Stepper) -> None:
        if self.world.rank >= len(self._saved_state):
            return
        saved = self._saved_state[self.world.rank]
        if saved and saved[0][0].shape[0] != self.config.batch_size:
            raise TrainingError(
                f"batch_size was {saved[0][0].shape[0]}, now {self.config.batch_size}: a run with "
                "carry_state must keep it"
            )
        model: Any = self.model
        kinds = [type(layer) for layer in model.initial_state(1)]
        state = [
            kind(*(part.to(self.device) for part in layer))
            for kind, layer in zip(kinds, saved, strict=False)
        ]
        stepper.state = state or None
        self._saved_state = []


class _Meter:
    """Tokens per second of training since it was last asked."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tokens, self._seconds = progress.tokens, progress.seconds

    def speed(self) -> float:
        progress = self._progress
        tokens, seconds = progress.tokens - self._tokens, progress.seconds - self._seconds
        self._tokens, self._seconds = progress.tokens, progress.seconds
        return tokens / max(1e-9, seconds)
