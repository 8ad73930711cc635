"""A default is written once, in the engine: what documents show is compared with it."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

import spikelet


def shown(doc: str) -> dict[str, Any]:
    """Options and defaults from the lines `name: ... Default: value` of a docstring."""
    lines = re.findall(r"^ *(\w+): .*Default: (.*)$", doc, re.MULTILINE)
    return {name: ast.literal_eval(value) for name, value in lines}


def test_the_docstring_shows_the_engines_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = spikelet.default_options()
    with capsys.disabled():
        print("\ndefaults:", ", ".join(f"{name}={value!r}" for name, value in defaults.items()))
    assert shown(spikelet.Model.generate.__doc__ or "") == defaults


@pytest.mark.parametrize(
    ("method", "extra", "missing"),
    [
        (spikelet.Model.generate, {"prompt"}, set()),
        (spikelet.Model.generate_batch, {"prompts", "batch_size"}, {"row"}),
        (spikelet.Session.generate, {"prompt"}, set()),
    ],
)
def test_every_way_to_generate_takes_every_option(
    method: Any, extra: set[str], missing: set[str]
) -> None:
    parameters = dict(inspect.signature(method).parameters)
    parameters.pop("self")
    assert set(parameters) - extra == set(spikelet.default_options()) - missing
    for name, parameter in parameters.items():
        if name not in {"prompt", "prompts"}:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is None, "None means: the model's own, else the engine's"


def test_an_option_left_out_is_the_default(writer: spikelet.Model) -> None:
    defaults = spikelet.default_options() | {"seed": 1, "max_new_tokens": 30}
    given = writer.generate("abc", **defaults).run()
    assert given.ids == writer.generate("abc", seed=1, max_new_tokens=30).run().ids
