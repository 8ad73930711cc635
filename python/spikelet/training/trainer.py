"""The training loop: optimiser, schedule, checkpoints, validation, log.

A run is a folder. Its files are written to a temporary name and renamed, so what is there is whole:

    run/
      tokenizer.json, training/config.json    how it was started
      training/train_log.csv                  one line per log interval and validation
      training/samples.txt                    text drawn at each validation
      training/step-00001234/                 checkpoint: two safetensors and state.json

A run stopped at any moment and resumed continues with the numbers it would have had: the data order
is a function of the position, and the checkpoint holds the optimiser and torch's random state.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from spikelet.training.config import SpikeGPTConfig, TrainerConfig
from spikelet.training.data import TokenData, Windows, validation_batches, write_atomically
from spikelet.training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer
    from torch import Tensor

    from spikelet.training.models.spikegpt import SpikeGPT


def learning_rate(config: TrainerConfig, tokens: int) -> float:
    """Return the rate of the step whose last token is number ``tokens``."""
    peak, floor = config.learning_rate, config.learning_rate * config.min_lr_ratio
    if tokens < config.warmup_tokens:
        return peak * tokens / config.warmup_tokens
    if config.schedule == "cosine":
        left = max(1, config.max_tokens - config.warmup_tokens)
        progress = min(1.0, (tokens - config.warmup_tokens) / left)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    left_share = (config.max_tokens - tokens) / (config.decay_share * config.max_tokens)
    return floor + (peak - floor) * min(1.0, max(0.0, left_share))


def make_optimizer(model: torch.nn.Module, config: TrainerConfig) -> torch.optim.Optimizer:
    """Return Adam, or AdamW that decays the matrices but neither embedding, norms nor time_*."""
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), fused=True, **common)
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() == 2 and name != "emb.weight" else rest).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True, **common)


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    windows: int = 0
    """Windows dealt so far: the position in the data."""
    seconds: float = 0.0
    """Wall time spent in training steps, over all resumes."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last log line."""


@dataclass(frozen=True)
class Validation:
    """Result of a pass over the validation text."""

    loss: float
    """Mean cross entropy, nats per token."""
    bits_per_byte: float
    """All of the text's information content over its UTF-8 bytes."""


def saved_configs(checkpoint: Path) -> tuple[SpikeGPTConfig, TrainerConfig]:
    """Return the configurations that a checkpoint was made with."""
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text())
        return SpikeGPTConfig(**state["model_config"]), TrainerConfig(**state["trainer_config"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: not the state of a run of this version: {error}") from error


def checkpoints(out: Path) -> list[Path]:
    """Return the whole checkpoints of the run in ``out``, oldest first."""
    found = [path for path in (out / "training").glob("step-*") if (path / "state.json").exists()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


class Trainer:
    """Trains a model in a run folder; ``run()`` returns when ``max_tokens`` are reached.

    SIGTERM and Ctrl-C end the run after the step in progress, with a checkpoint.
    """

    def __init__(
        self,
        model: SpikeGPT,
        data: TokenData,
        config: TrainerConfig,
        out: Path,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if data.vocab_size > model.config.vocab_size:
            raise TrainingError(
                f"the tokenizer has {data.vocab_size} tokens, the model's vocab_size is "
                f"{model.config.vocab_size}"
            )
        self.model, self.data, self.config = model, data, config
        self.tokenizer = tokenizer
        self.out, self.folder = out, out / "training"
        self.log_path = self.folder / "train_log.csv"
        self.optimizer = make_optimizer(model, config)
        self.windows = Windows(data.train, model.config.ctx_len, config.seed)
        self.progress = Progress()
        self.stop_requested = False
        self.last_validation: Validation | None = None

    # Checkpoints

    def save(self) -> Path:
        """Write a checkpoint and delete those beyond ``keep_checkpoints``."""
        target = self.folder / f"step-{self.progress.step:08d}"
        if not (target / "state.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".saving-"))
            try:
                self._write_checkpoint(temporary)
                temporary.chmod(0o755)
                shutil.rmtree(target, ignore_errors=True)  # the remains of one that is not whole
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in checkpoints(self.out)[: -self.config.keep_checkpoints]:
            shutil.rmtree(old)
        return target

    def _write_checkpoint(self, folder: Path) -> None:
        weights = {k: v.detach().contiguous() for k, v in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        moments: dict[str, Tensor] = {"rng.torch": torch.get_rng_state()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                moments[f"{name}|{key}"] = value.detach().contiguous()
        save_file(moments, folder / "optimizer.safetensors")
        state = {
            "progress": asdict(self.progress),
            "model_config": asdict(self.model.config),
            "trainer_config": asdict(self.config),
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1))

    def resume(self, checkpoint: Path | None = None) -> bool:
        """Continue from a checkpoint, by default the newest; False when the run has none."""
        known = checkpoints(self.out)
        if checkpoint is None and not known:
            return False
        folder = checkpoint or known[-1]
        try:
            state = json.loads((folder / "state.json").read_text())
            weights = load_file(folder / "model.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise TrainingError(f"{folder}: not a whole checkpoint: {error}") from error
        saved = state["trainer_config"]
        for name in ("seed", "optimizer"):
            if saved[name] != getattr(self.config, name):
                raise TrainingError(
                    f"{folder}: {name} was {saved[name]!r}, now {getattr(self.config, name)!r}: "
                    "a resumed run must keep it"
                )
        if state["model_config"]["ctx_len"] != self.model.config.ctx_len:
            raise TrainingError(f"{folder}: ctx_len was {state['model_config']['ctx_len']}")
        self.model.load_state_dict(weights, strict=True)
        torch.set_rng_state(moments.pop("rng.torch"))
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for entry, value in moments.items():
            name, key = entry.split("|")
            self.optimizer.state[parameters[name]][key] = value
        self.progress = Progress(**state["progress"])
        self._trim_log()
        for remains in self.folder.glob(".saving-*"):  # of a process killed while it saved
            shutil.rmtree(remains)
        return True

    # The loop

    def run(self) -> Progress:
        """Train until ``max_tokens`` or a stop signal; the last state is saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        saved_at = logged_at = time.monotonic()
        logged_tokens = self.progress.tokens
        losses = self.progress.losses
        with self._signals():
            while self.progress.tokens < self.config.max_tokens and not self.stop_requested:
                loss, norm, rate = self._step()
                losses.append(loss)
                step, now = self.progress.step, time.monotonic()
                if step % self.config.log_interval == 0:
                    speed = (self.progress.tokens - logged_tokens) / max(1e-9, now - logged_at)
                    mean = sum(losses) / len(losses)
                    self._log(mean, norm, rate, speed)
                    losses.clear()
                    logged_at, logged_tokens = now, self.progress.tokens
                if self.config.eval_interval and step % self.config.eval_interval == 0:
                    self._validate_and_sample()
                    logged_at, logged_tokens = time.monotonic(), self.progress.tokens
                if now - saved_at >= self.config.save_seconds:
                    self.save()
                    saved_at = time.monotonic()
        self.save()
        if not self.stop_requested:
            self._validate_and_sample()
        return self.progress

    def _step(self) -> tuple[float, float, float]:
        """Take one optimiser step; returns loss, gradient norm and learning rate."""
        started = time.monotonic()
        config, progress = self.config, self.progress
        step_tokens = config.grad_accumulation * config.batch_size * self.model.config.ctx_len
        rate = learning_rate(config, progress.tokens + step_tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total = 0.0
        for _ in range(config.grad_accumulation):
            inputs, targets = self.windows.batch(progress.windows, config.batch_size)
            with self._autocast():
                loss = self.model(inputs, targets)
            (loss / config.grad_accumulation).backward()
            total += float(loss.detach()) / config.grad_accumulation
            progress.windows += config.batch_size
            progress.tokens += inputs.numel()
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        )
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise TrainingError(
                f"step {progress.step + 1}: loss {total}, gradient norm {norm}; the weights before "
                f"this step were finite. Resume from {self._last_good()} with a lower learning_rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seconds += time.monotonic() - started
        return total, norm, rate

    def _last_good(self) -> str:
        known = checkpoints(self.out)
        return str(known[-1]) if known else "the start"

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.autocast == "bf16")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def request(number: int, _frame: object) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            self._say(f"signal {number}: the run ends after this step, with a checkpoint")

        try:
            before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: leave signals to whoever owns them
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # Validation and samples

    @torch.no_grad()
    def validate(self) -> Validation:
        """Measure the loss on the validation text, every window from a fresh state."""
        ctx_len, rows = self.model.config.ctx_len, self.config.batch_size
        nats, tokens = 0.0, 0
        self.model.eval()
        for inputs, targets in validation_batches(self.data.valid, ctx_len, rows):
            with self._autocast():
                nats += float(self.model(inputs, targets)) * targets.numel()
            tokens += targets.numel()
        self.model.train()
        size = max(1, self.data.valid_sizes.bytes)
        return Validation(nats / max(1, tokens), nats / math.log(2) / size)

    def _validate_and_sample(self) -> None:
        if len(self.data.valid) > 1:
            result = self.last_validation = self.validate()
            self._write_row(valid_loss=result.loss, valid_bits_per_byte=result.bits_per_byte)
            self._say(
                f"step {self.progress.step}  validation loss {result.loss:.4f}  "
                f"{result.bits_per_byte:.4f} bits per byte"
            )
        if self.tokenizer is None or not self.config.sample_tokens:
            return
        prompt = self.tokenizer.encode(self.config.sample_prompt, add_special_tokens=False).ids
        drawn = self.model.generate(
            prompt or [self.data.end_of_text],
            self.config.sample_tokens,
            stop_ids=[self.data.end_of_text],
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        text = self.tokenizer.decode([*prompt, *drawn])
        with (self.folder / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"--- step {self.progress.step}\n{text}\n")

    # Log

    def _write_config(self) -> None:
        text = json.dumps(
            {"model": asdict(self.model.config), "trainer": asdict(self.config)}, indent=1
        )
        write_atomically(self.folder / "config.json", lambda path: path.write_text(text))

    def _log(self, loss: float, norm: float, rate: float, speed: float) -> None:
        self._write_row(loss=loss, learning_rate=rate, grad_norm=norm, tokens_per_second=speed)
        left = (self.config.max_tokens - self.progress.tokens) / max(1.0, speed)
        share = self.progress.tokens / self.config.max_tokens
        line = (
            f"step {self.progress.step}  {share:6.1%}  loss {loss:.4f}  lr {rate:.2e}  "
            f"norm {norm:.2f}  {speed:,.0f} tokens/s  {left / 60:.0f} min left"
        )
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            self._say(line)

    def _say(self, line: str) -> None:
        start = "\r\x1b[K" if sys.stderr.isatty() else time.strftime("%H:%M:%S  ")
        sys.stderr.write(f"{start}{line}\n")
        sys.stderr.flush()

    def _write_row(self, **values: float) -> None:
        fresh = not self.log_path.exists()
        with self.log_path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, LOG_FIELDS)
            if fresh:
                writer.writeheader()
            row: dict[str, object] = {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "seconds": f"{self.progress.seconds:.1f}",
            }
            writer.writerow(row | {name: f"{value:.6g}" for name, value in values.items()})

    def _trim_log(self) -> None:
        """Drop log lines after the checkpoint: the steps they tell of are run again."""
        if not self.log_path.exists():
            return
        with self.log_path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.progress.step]

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, LOG_FIELDS)
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.log_path, write)


LOG_FIELDS = (
    "step", "tokens", "seconds", "loss", "learning_rate", "grad_norm", "tokens_per_second",
    "valid_loss", "valid_bits_per_byte",
)  # fmt: skip
