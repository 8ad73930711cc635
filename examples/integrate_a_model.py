"""A module of your own, trained and used by its name: your loop, your log, your prediction.

The module learns to add 1 to each of twelve numbers. From spikelet it gets checkpoints, saved
configurations, a log that `spikelet report` draws, and loading by name.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from spikelet.training import Predicter, Trainer, TrainerConfig


@dataclass
class MyModelConfig:
    input_size: int = 12
    hidden_size: int = 24
    output_size: int = 12


class MyModel(nn.Module):
    def __init__(self, config: MyModelConfig) -> None:
        super().__init__()
        self.config = config  # is saved as config.json
        self.fc1 = nn.Linear(config.input_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


@dataclass
class MyTrainerConfig(TrainerConfig):
    device = "cpu"  # another default for a field that there is
    lr: float = 1e-2  # a field of one's own
    batch_size: int = 4
    max_step: int = 500
    save_step_interval: int = 250
    eval_step_interval: int = 100


@dataclass
class MyLog:  # the columns of train_log.csv
    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None


class MyTrainer(Trainer):
    _visual_series = {"loss": ["step", "train_loss"], "validation": ["step", "val_loss"]}

    def __init__(self, model: MyModel, config: MyTrainerConfig, **options: object) -> None:
        super().__init__(model, config, log_fieldnames=MyLog, **options)

    @property
    def root(self) -> Path:  # where runs of this kind lie; leave it out for the usual place
        return Path("runs")

    def _get_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.lr)

    def validate(self, val_dataset: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        with torch.no_grad():
            losses = [float(F.mse_loss(self.model(x), y)) for x, y in val_dataset]
        self.log(MyLog(step=self.current_step, val_loss=sum(losses) / len(losses)))

    def train(self, train_dataset: Iterator, val_dataset: list | None = None) -> None:
        self.optimizer = self._get_optimizer()
        for step, (x, y) in zip(range(self.max_step), train_dataset, strict=False):
            loss = F.mse_loss(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.current_step = step
            if step % 10 == 0:
                self.log(MyLog(step=step, train_loss=float(loss.detach())))
            self._auto_save_pretrained()  # iter-250-ckpt.pth, iter-500-ckpt.pth
            self._auto_validate(val_dataset)


class MyPredicter(Predicter):
    def __init__(self, name: str, model: nn.Module, device: str = "cpu") -> None:
        super().__init__(name, model, device)

    @classmethod
    def get_root(cls) -> Path:
        return Path("runs")

    @classmethod
    def get_model(cls, name: str, checkpoint: str | None = None) -> nn.Module:
        model = MyModel(MyModelConfig(**cls.get_model_config_json(name)))
        saved = torch.load(cls.get_checkpoint(name, checkpoint), weights_only=True)
        model.load_state_dict(saved["state_dict"])
        return model

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model(x.to(self.device))


Trainer.register(MyModel.__name__, MyTrainer)
MyPredicter.register(MyModel.__name__, MyPredicter)


def batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        x = torch.randn(size, 12)
        yield x, x + 1


torch.manual_seed(1)
name = time.strftime("add-one-%Y%m%d-%H%M%S")
config = MyTrainerConfig(name=name)
trainer = Trainer(MyModel(MyModelConfig()), config)  # makes a MyTrainer
held_out = [pair for pair, _ in zip(batches(4), range(10), strict=False)]
trainer.train(batches(config.batch_size), held_out)

predicter = MyPredicter.from_pretrained(name)
x = torch.linspace(-1, 1, 12)
print("x         ", [round(v, 2) for v in x.tolist()])
print("prediction", [round(v, 2) for v in predicter.predict(x).tolist()])
