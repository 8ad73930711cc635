"""Options of configuration classes: nothing is promised that the class would refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from spikelet import OptionError
from spikelet.training import RWKV4Config, SpikeGPTConfig, TrainerConfig
from spikelet.training.options import Option, all_options, describe

CONFIGS = (SpikeGPTConfig, RWKV4Config, TrainerConfig)


def options() -> list[tuple[type, Option]]:
    return [(config, option) for config in CONFIGS for option in describe(config)]


@pytest.mark.parametrize("config", CONFIGS)
def test_c06_every_field_is_there_with_its_default(config: type) -> None:
    found = {option.name: option for option in describe(config)}
    assert list(found) == [field.name for field in fields(config)]
    for field in fields(config):
        assert found[field.name].default == field.default
        assert found[field.name].description, field.name
    assert all(option.type in ("int", "float", "bool", "str") for option in found.values())


def test_c06_choices_and_limits_are_those_of_the_class() -> None:
    kinds = dict.fromkeys(name for _, option in options() for name, _ in option.limits)
    assert set(kinds) == {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}
    for config, option in options():
        for choice in option.choices:
            config(**{option.name: choice})
        if option.choices and not option.open:
            with pytest.raises(OptionError):
                config(**{option.name: "no such choice"})
        for kind, limit in option.limits:
            outside = limit + (1 if "aximum" in kind else -1)
            wrong = limit if kind.startswith("exclusive") else outside
            with pytest.raises(OptionError):
                config(**{option.name: wrong})


def test_c06_known_lists() -> None:
    found = {option.name: option for option in describe(TrainerConfig)}
    assert found["optimizer"].choices == ("adamw", "adam", "muon")
    assert not found["optimizer"].open
    assert found["device"].choices == ("auto", "cpu", "cuda")
    assert found["device"].open
    assert found["batch_size"].limits == (("minimum", 1),)
    assert dict(found["learning_rate"].limits) == {"exclusiveMinimum": 0}
    models = {option.name: option for option in describe(SpikeGPTConfig)}
    assert models["model_type"].choices == ("RWKV", "RWKV-ffnPre")
    assert dict(models["dropout"].limits) == {"minimum": 0, "exclusiveMaximum": 1}


def test_c06_a_subclass_has_the_texts_of_its_base() -> None:
    @dataclass
    class Mine(TrainerConfig):
        """Another.

        Args:
            lr: my own rate.
        """

        lr: float = 1e-3
        max_step: int = 7

    found = {option.name: option for option in describe(Mine)}
    assert found["lr"].description == "my own rate."
    assert found["max_step"].default == 7
    assert "steps" in found["max_step"].description


def test_c06_all_models_without_torch() -> None:
    found = all_options()
    assert set(found) == {"SpikeGPT", "RWKV4"}
    assert all(set(parts) == {"model", "trainer"} for parts in found.values())
    field = found["SpikeGPT"]["model"]["n_layer"]
    assert field == {
        "type": "int", "required": False, "default": 12, "minimum": 1, "description": "blocks.",
    }  # fmt: skip
    code = (
        "import sys\nfrom spikelet.training.options import all_options\n"
        "all_options()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
