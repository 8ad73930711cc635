"""Options of a run: defaults, subclasses, values that make no sense."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from spikelet.errors import OptionError
from spikelet.training.trainer_config import TrainerConfig


def test_d10_the_fields_that_darwinkit_has_keep_their_defaults() -> None:
    expected = {
        "max_step": 100,
        "batch_size": 2,
        "learning_rate": 4e-4,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "grad_norm_clip": 1.0,
        "lr_decay": True,
        "warmup_tokens": 0,
        "final_tokens": 0,
        "lr_final": 1e-5,
        "device_num": 1,
        "num_workers": 0,
        "eval_iters": 100,
        "save_step_interval": 100,
    }
    config = TrainerConfig("mine", device="cpu")
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.betas == (0.9, 0.99)
    assert TrainerConfig(beta1=0.8, beta2=0.95).betas == (0.8, 0.95)
    assert "eval_step_interval" in {field.name for field in fields(TrainerConfig)}


def test_d10_overrides_without_a_type_are_defaults() -> None:
    @dataclass
    class MyConfig(TrainerConfig):
        device = "cuda"
        lr = 1e-3
        batch_size = 4
        max_step: int = 10_000

    @dataclass
    class Derived(MyConfig):
        batch_size = 8

    config = MyConfig(name="x")
    assert (config.device, config.lr, config.batch_size, config.max_step) == (
        "cuda", 1e-3, 4, 10_000,
    )  # fmt: skip
    assert MyConfig(batch_size=3).batch_size == 3
    assert (Derived().batch_size, Derived().device, MyConfig().batch_size) == (8, "cuda", 4)
    assert TrainerConfig().device == "auto"


def test_d11_epochs_are_steps_times_length() -> None:
    config = TrainerConfig(max_epochs=3, epoch_length_fixed=50, epoch_save_frequency=2)
    assert (config.max_step, config.save_step_interval) == (150, 100)
    assert TrainerConfig(max_epochs=3, epoch_length_fixed=50).save_step_interval == 100
    with pytest.raises(OptionError, match="max_epochs is 3; it needs epoch_length_fixed"):
        TrainerConfig(max_epochs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; known are"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"autocast": "f16"}, "autocast is 'f16'"),
        ({"batch_size": 0}, "batch_size is 0; at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 1e-6}, "lr_final is 1e-05, above learning_rate 1e-06"),
        ({"decay_share": 0.0}, "decay_share is 0.0"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"save_step_interval": -1}, "save_step_interval is -1; 0 or more"),
        ({"valid_every": 1}, "valid_every is 1"),
        ({"name": "../away"}, "name is '../away'"),
        ({"device": "gpu"}, "device is 'gpu'; known are 'auto', 'cpu'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


def test_a_constant_rate_needs_no_last_one() -> None:
    assert TrainerConfig(learning_rate=1e-6, lr_decay=False).learning_rate == 1e-6
