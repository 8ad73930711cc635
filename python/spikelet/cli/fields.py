"""The fields of a configuration as options of the command line, in both spellings.

`--n-layer` is this program's way to write it, `--n_layer` Python's and DarwinKit's. An option that
is not given stays None, and the configuration's own default counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from spikelet.training.options import Option, describe

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Flag(argparse.Action):
    """`--x`, `--no-x`, `--x True` and `--x False`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Stores True or False."""
        value = _WORDS.get(str(values).lower()) if values else True
        if value is None:
            raise argparse.ArgumentError(self, f"needs True or False, not '{values}'")
        setattr(namespace, self.dest, value != (option_string or "").startswith("--no"))


def add_fields(
    parser: argparse.ArgumentParser,
    title: str,
    config: type,
    *,
    without: Sequence[str] = (),
    flag_words: bool = False,
) -> None:
    """Offers every field of a configuration class, with its default in the help.

    Args:
        parser: gets the options.
        title: of their group in the help.
        config: the dataclass.
        without: fields that the command sets otherwise.
        flag_words: `--x True` and `--x False` are understood, in a command where no other word can
            follow an option.
    """
    group = parser.add_argument_group(title)
    for option in describe(config):
        if option.name in without:
            continue
        dashed = option.name.replace("_", "-")
        names = dict.fromkeys([f"--{dashed}", f"--{option.name}"])
        settings: dict[str, Any] = {"dest": option.name, "default": None, "help": _help(option)}
        if option.type == "bool":
            names |= dict.fromkeys([f"--no-{dashed}", f"--no_{option.name}"])
            settings |= {"action": Flag, "nargs": "?" if flag_words else 0, "metavar": "BOOL"}
        else:
            settings |= {"type": _TYPES[option.type], "metavar": option.type.upper()}
        group.add_argument(*names, **settings)


def _help(option: Option) -> str:
    return f"{option.description} (default: {option.default})".replace("%", "%%")


def given_fields(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of a configuration class that the command line set."""
    values = {field.name: getattr(args, field.name, None) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}
