"""Everything public is documented, and every example runs."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import spikelet
from spikelet import _models, _spikelet, _token, errors

ROOT = Path(__file__).parent.parent


def documented() -> Iterator[tuple[str, object]]:
    """Public objects and their public members."""
    yield "spikelet", spikelet
    for name in spikelet.__all__:
        thing = getattr(spikelet, name)
        if isinstance(thing, str):
            continue
        yield name, thing
        if isinstance(thing, type) and thing.__module__ == "spikelet":
            for member, value in vars(thing).items():
                if not member.startswith("_"):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize(
    ("name", "thing"), list(documented()), ids=[name for name, _ in documented()]
)
def test_it_is_documented(name: str, thing: object) -> None:
    doc = inspect.getdoc(thing)
    assert doc, f"{name} has no docstring"
    assert doc[0].isupper() or doc.startswith(("`", "spikelet:"))


def examples() -> list[doctest.DocTest]:
    finder, found = doctest.DocTestFinder(recurse=False), []
    modules: list[ModuleType] = [_models, _token, errors]
    things = dict(documented()) | {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value)
    }
    for name, thing in things.items():
        found += [
            test
            for test in finder.find(thing, name, module=False, globs={"spikelet": spikelet})
            if test.examples
        ]
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_the_example_runs(example: doctest.DocTest, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = "".join(line.source for line in example.examples)
    if "spikelet.load()" in sources and "bundled" not in spikelet.local_models():
        pytest.skip("this installation carries no model")
    monkeypatch.chdir(ROOT)
    output: list[str] = []
    result = doctest.DocTestRunner().run(example, out=output.append)
    assert result.attempted
    assert not result.failed, "".join(output)


def test_there_are_examples() -> None:
    names = {example.name for example in examples()}
    assert {"Model", "Generation", "Session", "State", "Trace", "Tokenizer", "load"} <= names


def test_the_compiled_module_names_its_package() -> None:
    for name in ("Model", "Session", "Token"):
        assert getattr(spikelet, name).__module__.startswith("spikelet")
    assert spikelet.__version__ == _spikelet.__version__
