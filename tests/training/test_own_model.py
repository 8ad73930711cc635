"""A user's own module, trainer and log: what the base class does for them."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from spikelet.errors import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    LanguageModelTrainer,
    LogFieldnames,
    Trainer,
    TrainerConfig,
    TrainingError,
    runs,
)
from training.tiny import tiny_model  # noqa: E402

Row = tuple[torch.Tensor, torch.Tensor]


@dataclass
class AffineConfig:
    width: int = 12


class Affine(torch.nn.Module):
    def __init__(self, config: AffineConfig) -> None:
        super().__init__()
        self.config = config
        self.map = torch.nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)


@dataclass
class AffineTrainerConfig(TrainerConfig):
    device = "cpu"
    lr = 1e-2
    batch_size = 4
    max_step: int = 25
    save_step_interval: int = 10


class AffineTrainer(Trainer):
    def __init__(self, model: Affine, config: AffineTrainerConfig, **options: Any) -> None:
        super().__init__(model, config, **options)
        self.config = config
        self.validated: list[int] = []

    def _get_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.lr)

    def validate(self, val_dataset: object) -> None:
        self.validated.append(self.current_step + 1)

    def train(self, train_dataset: list[Row], val_dataset: object = None) -> float:
        self.optimizer = self._get_optimizer()
        loss = torch.zeros(())
        for step in range(self.current_step, self.max_step):
            x, y = train_dataset[step % len(train_dataset)]
            x, y = x.to(self.config.device), y.to(self.config.device)
            self.optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.current_step = step
            self.csv_logger.log({"step": step, "train_loss": loss})
            self._auto_save_pretrained()
            self._auto_validate(val_dataset)
        return float(loss.detach())


Trainer.register("Affine", AffineTrainer)


@pytest.fixture
def rows() -> list[Row]:
    torch.manual_seed(5)
    return [(torch.randn(4, 12), torch.ones(4, 12)) for _ in range(10)]


def affine() -> Affine:
    torch.manual_seed(0)
    return Affine(AffineConfig())


def make(root: Path, **options: Any) -> AffineTrainer:
    own = {name: options.pop(name) for name in ("resume", "log_fieldnames") if name in options}
    config = AffineTrainerConfig(**{"name": "mine", **options})
    trainer = Trainer(affine(), config, root=root, **own)
    assert isinstance(trainer, AffineTrainer)
    return trainer


def log_rows(trainer: Trainer) -> list[dict[str, str]]:
    assert trainer.save_directory is not None
    with (trainer.save_directory / "train_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def names(trainer: Trainer) -> list[str]:
    assert trainer.run_directory is not None
    return [path.name for path in runs.checkpoints(trainer.run_directory)]


def test_t03_t04_a_module_with_its_own_loss_trains(tmp_path: Path, rows: list[Row]) -> None:
    trainer = make(tmp_path)
    assert trainer.tokenizer is None
    last = trainer.train(rows)
    assert last < 0.5 * float(log_rows(trainer)[0]["train_loss"])


def test_t05_the_overridden_optimizer_is_used(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def spy(self: AffineTrainer) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(self.model.parameters(), lr=0.1))
        return made[-1]

    monkeypatch.setattr(AffineTrainer, "_get_optimizer", spy)
    trainer = make(tmp_path, max_step=1)
    trainer.train(rows)
    assert trainer.optimizer is made[0]


def test_t06_saving_by_interval_and_at_the_last_step(tmp_path: Path, rows: list[Row]) -> None:
    trainer = make(tmp_path)
    trainer.train(rows)
    assert names(trainer) == ["iter-10-ckpt.pth", "iter-20-ckpt.pth", "iter-25-ckpt.pth"]
    trainer.save_pretrained()
    assert names(trainer)[-1] == "complete.pth"
    saved = torch.load(tmp_path / "mine" / "training" / "complete.pth", weights_only=True)
    assert saved["current_step"] == 25


def test_t07_the_base_class_makes_what_is_registered(tmp_path: Path) -> None:
    assert type(Trainer(tiny_model(), TrainerConfig(device="cpu"))) is LanguageModelTrainer
    assert type(Trainer(affine(), AffineTrainerConfig())) is AffineTrainer

    class Wider(Affine):
        pass

    assert type(Trainer(Wider(AffineConfig()), AffineTrainerConfig())) is AffineTrainer
    plain = Trainer(torch.nn.Linear(2, 2), TrainerConfig(device="cpu"))
    assert type(plain) is Trainer
    with pytest.raises(NotImplementedError, match="no trainer is registered for Linear"):
        plain.train([])


def test_t07_a_name_is_registered_once() -> None:
    class Other(AffineTrainer):
        pass

    with pytest.warns(UserWarning, match="a trainer for Affine is registered already"):
        Trainer.register("Affine", Other)
    assert type(Trainer(affine(), AffineTrainerConfig())) is AffineTrainer
    with pytest.raises(ValueError, match="is not a subclass of Trainer"):
        Trainer.register("Affine", Affine)  # type: ignore[arg-type]


def test_t08_a_property_root_or_the_home_says_where_runs_lie(tmp_path: Path, home: Path) -> None:
    class Elsewhere(AffineTrainer):
        @property
        def root(self) -> Path:
            return tmp_path / "elsewhere"

    trainer = Elsewhere(affine(), AffineTrainerConfig(name="mine"))
    assert trainer.save_directory == tmp_path / "elsewhere" / "mine" / "training"
    assert trainer.trainer_config_save_path is not None
    assert trainer.trainer_config_save_path.is_file()
    other = Trainer(affine(), AffineTrainerConfig(name="mine"))
    assert other.run_directory == home / "runs" / "mine"
    assert other.modle_config_save_path == other.model_config_save_path


def test_t10_configurations_reload_into_equal_dataclasses(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_epochs=2, epoch_length_fixed=7)
    folder = tmp_path / "mine" / "training"
    assert AffineConfig(**json.loads((folder / "config.json").read_text())) == AffineConfig()
    values = json.loads((folder / "trainer_config.json").read_text())
    assert AffineTrainerConfig(**values) == trainer.config


def test_t12_class_series_fork_and_source_are_kept(tmp_path: Path) -> None:
    make(tmp_path)
    folder = tmp_path / "mine" / "training"
    assert json.loads((folder / "external_config.json").read_text()) == {
        "model_class": "Affine",
        "series": {"train_loss": ["step", "train_loss"]},
        "fork": None,
    }
    assert (folder / "model.py").read_text() == Path(__file__).read_text()


@pytest.mark.parametrize(("interval", "expected"), [(0, 0), (5, 5), (100, 1)])
def test_t13_save_step_interval(
    tmp_path: Path, rows: list[Row], interval: int, expected: int
) -> None:
    trainer = make(tmp_path, save_step_interval=interval)
    trainer.train(rows)
    assert len(names(trainer)) == expected


def test_t14_what_a_checkpoint_holds(tmp_path: Path, rows: list[Row]) -> None:
    trainer = make(tmp_path)
    trainer.train(rows)
    saved = torch.load(tmp_path / "mine" / "training" / "iter-10-ckpt.pth", weights_only=True)
    assert set(saved) == {"model_class", "state_dict", "current_step", "optimizer_state_dict"}
    assert (saved["model_class"], saved["current_step"]) == ("Affine", 10)
    assert set(saved["optimizer_state_dict"]["state"]) == {"map.weight", "map.bias"}


def test_t15_a_name_in_use_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(TrainingError, match=r"mine holds a run already.*resume='mine'"):
        make(tmp_path)


def test_save_pretrained_never_overwrites(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.save_pretrained("first")
    with pytest.raises(TrainingError, match=r"first.pth is there already"):
        trainer.save_pretrained("first")


def test_t16_a_resumed_loop_goes_on_with_step_and_optimizer(
    tmp_path: Path, rows: list[Row]
) -> None:
    whole = make(tmp_path / "whole")
    whole.train(rows)
    first = make(tmp_path, max_step=10)
    first.train(rows)
    second = make(tmp_path, resume="mine")
    assert second.current_step == 10
    second.train(rows)
    assert log_rows(second) == log_rows(whole)
    assert torch.equal(second.model.map.weight, whole.model.map.weight)


def test_t17_another_name_starts_from_the_weights(tmp_path: Path, rows: list[Row]) -> None:
    first = make(tmp_path)
    first.train(rows)
    second = make(tmp_path, name="next", resume="mine:iter-20-ckpt")
    assert second.current_step == 0
    saved = torch.load(tmp_path / "mine" / "training" / "iter-20-ckpt.pth", weights_only=True)
    assert torch.equal(second.model.map.weight, saved["state_dict"]["map.weight"])
    second.train(rows)
    assert names(second) == ["iter-10-ckpt.pth", "iter-20-ckpt.pth", "iter-25-ckpt.pth"]


def test_t18_a_fork_runs_edited_code(tmp_path: Path, home: Path, rows: list[Row]) -> None:
    folder = home / "forks" / "twice"
    folder.mkdir(parents=True)
    (folder / "edited.py").write_text(
        "import torch\n\n\nclass Affine(torch.nn.Module):\n"
        "    def forward(self, x):\n        return 2 * self.map(x)\n"
    )
    described = {"model_class": "Affine", "modules": {"": "edited.py:Affine"}}
    (folder / "fork.json").write_text(json.dumps(described))
    x = torch.ones(3, 12)
    plain = affine()(x)
    trainer = Trainer(affine(), AffineTrainerConfig(name="mine"), root=tmp_path, fork="twice")
    assert trainer.fork_directory == folder
    assert torch.equal(trainer.model(x), 2 * plain)
    assert torch.equal(affine()(x), plain)  # other models are left alone
    trainer.train(rows)
    external = json.loads((tmp_path / "mine" / "training" / "external_config.json").read_text())
    assert external["fork"] == "twice"
    again = make(tmp_path, resume="mine")
    assert again.fork == "twice"
    assert torch.equal(again.model(x), trainer.model(x))


def test_t19_validation_runs_by_interval_and_at_the_end(tmp_path: Path, rows: list[Row]) -> None:
    trainer = make(tmp_path, eval_step_interval=10)
    trainer.train(rows, val_dataset=rows)
    assert trainer.validated == [10, 20, 25]
    at_end = make(tmp_path, name="other")
    at_end.train(rows, val_dataset=rows)
    assert at_end.validated == [25]


def test_t20_t21_a_log_dataclass_of_ones_own(tmp_path: Path) -> None:
    @dataclass
    class Columns:
        step: int = 0
        accuracy: float | None = None

    trainer = make(tmp_path, log_fieldnames=Columns)
    trainer.csv_logger.log(Columns(1, 0.25))
    assert log_rows(trainer) == [{"step": "1", "accuracy": "0.25"}]  # readable at once
    trainer.log(Columns(2))
    assert log_rows(trainer)[1:] == [{"step": "2", "accuracy": ""}]
    with pytest.raises(OptionError, match=r"no column 'train_loss' \(it has step, accuracy\)"):
        trainer.log(LogFieldnames(3, 1.0))
    with pytest.raises(OptionError, match="a dataclass is needed"):
        make(tmp_path, name="other", log_fieldnames=int)


def test_t22_the_log_lies_in_the_run_and_can_be_read_while_it_goes_on(
    tmp_path: Path, rows: list[Row]
) -> None:
    trainer = make(tmp_path)
    seen: list[int] = []
    validate = AffineTrainer.validate

    class Reader(AffineTrainer):
        def validate(self, val_dataset: object) -> None:
            seen.append(len(log_rows(self)))
            validate(self, val_dataset)

    trainer.__class__ = Reader
    trainer.eval_step_interval = 10
    trainer.train(rows, rows)
    assert seen == [10, 20, 25]
    assert set(log_rows(trainer)[0]) == {"step", "train_loss", "val_loss"}


def test_t02_the_pid_file_is_there_within_with_only(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "training" / "pid"
    with make(tmp_path):
        assert path.read_text() == str(os.getpid())
        assert runs.read_run(tmp_path / "mine").running
    assert not path.exists()
    with pytest.raises(KeyError), make(tmp_path, resume="mine"):
        raise KeyError("gone wrong")
    assert not path.exists()


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    (tmp_path / "mine" / "training" / "pid").write_text(str(os.getppid()))
    with pytest.raises(TrainingError, match=f"process {os.getppid()} is training"), trainer:
        pass


def test_t30_an_error_leaves_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError), make(tmp_path):
        raise KeyError("gone wrong")
    text = (tmp_path / "mine" / "training" / "exception.log").read_text()
    assert text.startswith("Traceback")
    assert "KeyError: 'gone wrong'" in text


def test_without_a_name_nothing_is_written(tmp_path: Path, home: Path, rows: list[Row]) -> None:
    trainer = make(tmp_path, name=None)
    with trainer:
        trainer.train(rows)
        trainer.save_pretrained()
    assert trainer.save_directory is None
    assert not home.exists()
    assert list(tmp_path.iterdir()) == []


def test_d12_cuda_without_a_gpu_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(OptionError, match=r"device is 'cuda'.*no GPU.*'cpu'.*'auto'"):
        Trainer(affine(), AffineTrainerConfig(device="cuda"))
    config = AffineTrainerConfig(device="auto")
    assert Trainer(affine(), config).device.type == "cpu"
    assert config.device == "cpu"  # so that tensor.to(config.device) works


def test_what_is_needed_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="config is None; a TrainerConfig is needed"):
        Trainer(torch.nn.Linear(2, 2))
    with pytest.raises(OSError, match="there is no run 'absent'"):
        make(tmp_path, resume="absent")


def test_config_values_survive_asdict(tmp_path: Path) -> None:
    assert asdict(make(tmp_path).config)["max_step"] == 25
