"""Configuration classes as lists of options: for the command line, and for forms on a page.

Name, type and default are those of the dataclass, the text is its docstring's. Which values are
allowed is found by trying: the class itself is asked, so a list of options never contradicts it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from spikelet.errors import OptionError


@dataclass(frozen=True)
class Option:
    """One field of a configuration."""

    name: str
    type: str
    """``"int"``, ``"float"``, ``"bool"`` or ``"str"``."""
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    """Of a text, where it has a closed list."""
    open: bool = False
    """The list is one of examples: other values may be allowed."""
    limits: tuple[tuple[str, float], ...] = ()
    """Of a number: ``minimum``, ``exclusiveMinimum``, ``exclusiveMaximum`` or ``maximum``."""

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    def as_dict(self) -> dict[str, Any]:
        """What ``spikelet create-options`` writes of it; limits have JSON Schema's names."""
        found: dict[str, Any] = {"type": self.type, "required": self.required}
        found["default"] = None if self.required else self.default
        if self.choices:
            found["examples" if self.open else "choices"] = list(self.choices)
        return found | dict(self.limits) | {"description": self.description}


def describe(config: type) -> list[Option]:
    """Return the options of a configuration class, in the order of its fields."""
    texts = _texts(config)
    return [_option(config, field, texts.get(field.name, "")) for field in fields(config)]


def _option(config: type, field: Field[Any], text: str) -> Option:
    kind = _kind(field)
    default = field.default

    def accepts(value: object) -> bool:
        try:
            config(**{field.name: value})
        except OptionError:
            return False
        return True

    plain = text.replace("``", "").replace('"', "'")
    if kind == "str":
        named = tuple(dict.fromkeys(re.findall(r'``"([\w.:-]+)"``', text)))
        choices = tuple(name for name in named if accepts(name))
        free = accepts("x-9") or len(choices) < len(named)
        return Option(field.name, kind, default, plain, choices, open=free)
    limits = () if kind == "bool" else _limits(kind, default, accepts)
    return Option(field.name, kind, default, plain, limits=limits)


def _kind(field: Field[Any]) -> str:
    if isinstance(field.default, bool | int | float | str):
        return type(field.default).__name__
    named = re.match(r"(int|float|bool|str)\b", str(field.type))
    return named[1] if named else "str"


def _limits(
    kind: str, default: object, accepts: Callable[[object], bool]
) -> tuple[tuple[str, float], ...]:
    found: list[tuple[str, float]] = []
    if kind == "int":
        low = next((n for n in range(-1, 5) if accepts(n)), None)
        return (("minimum", low),) if low is not None and low > -1 else ()
    if not accepts(-1e-9):
        if accepts(0.0):
            found.append(("minimum", 0))
        elif accepts(default):
            found.append(("exclusiveMinimum", 0))
    if accepts(0.999) and not accepts(1.5):
        found.append(("maximum" if accepts(1.0) else "exclusiveMaximum", 1))
    return tuple(found)


def _texts(config: type) -> dict[str, str]:
    """Read the ``Args:`` sections of a dataclass and its bases: field name to its text."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Args:")
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
        found |= {name: re.sub(r"\s+", " ", text) for name, text in entries}
    return found


def all_options() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the options of every model that can be trained, and of its training."""
    from spikelet import training

    models = {"SpikeGPT": training.SpikeGPTConfig, "RWKV4": training.RWKV4Config}
    return {
        name: {
            part: {option.name: option.as_dict() for option in describe(config)}
            for part, config in (("model", model), ("trainer", training.TrainerConfig))
        }
        for name, model in models.items()
    }
