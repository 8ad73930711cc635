"""Forks: a model whose parts run edited code, without touching the original.

A fork NAME is a folder ``home()/forks/NAME`` that its user wrote: Python files with edited classes,
and ``fork.json``, which says what they stand for::

    {"model_class": "SpikeGPT", "modules": {"blocks.*.ffn": "ffn.py:ChannelMix"}}

Keys are paths of submodules, as ``named_modules`` gives them, with ``*`` and ``?``; the empty path
is the model itself. The submodules get the methods of the edited class and keep their parameters:
its ``__init__`` is not called.

Code is run from that folder only, and only where a fork is asked for by name. A run records the
name of its fork, never its code: a run folder from elsewhere brings no code along.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from types import ModuleType

from torch import nn

from spikelet._models import home
from spikelet.errors import OptionError
from spikelet.training import runs
from spikelet.training.errors import TrainingError
from spikelet.training.files import write_text

_DESCRIPTION = "fork.json"
_serial = count()


def fork_folder(name: str) -> Path:
    """Return where the fork of that name lies."""
    return home() / "forks" / runs.valid_name(name, "fork")


def list_forks() -> list[str]:
    """Return the names of all forks."""
    return sorted(path.parent.name for path in (home() / "forks").glob(f"*/{_DESCRIPTION}"))


def apply_fork(model: nn.Module, folder: Path) -> list[str]:
    """Give submodules of ``model`` the methods of the fork in ``folder``; return their paths."""
    where = folder / _DESCRIPTION
    if not where.is_file():
        known = ", ".join(list_forks()) or "none"
        raise TrainingError(f"there is no fork {folder.name!r} ({where}; known: {known})")
    described = runs.read_json(where)
    made_for = described.get("model_class")
    if made_for not in (None, type(model).__name__):
        raise OptionError(f"{where} is for {made_for}; the model is {type(model).__name__}")
    modules = described.get("modules")
    if not isinstance(modules, dict) or not modules:
        raise OptionError(f"{where}: modules is {modules!r}; needed is an object of path to code")
    codes: dict[str, ModuleType] = {}
    replaced: list[str] = []
    for pattern, target in modules.items():
        edited = _edited_class(folder, str(target), codes)
        paths = [path for path, _ in model.named_modules() if fnmatchcase(path, pattern)]
        if not paths:
            raise OptionError(f"{where}: {type(model).__name__} has no submodule {pattern!r}")
        for path in paths:
            _replace_methods(model.get_submodule(path), edited)
        replaced += paths
    return replaced


def fingerprint(folder: Path) -> str:
    """Return a hash of a fork's description and code."""
    digest = hashlib.sha256()
    for path in sorted([folder / _DESCRIPTION, *folder.glob("*.py")]):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _edited_class(folder: Path, target: str, codes: dict[str, ModuleType]) -> type[nn.Module]:
    file, _, name = target.partition(":")
    path = folder / runs.valid_name(file, f"file of {target!r} in {_DESCRIPTION}")
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, named in {folder / _DESCRIPTION}")
    if file not in codes:
        codes[file] = _run(path)
    found = getattr(codes[file], name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TrainingError(f"{path} has no class {name!r} that is a torch module")
    return found


def _run(path: Path) -> ModuleType:
    """Run a file as a module of its own, under a name that no import statement leads to."""
    name = f"_spikelet_fork_{next(_serial)}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TrainingError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and tracebacks look the module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TrainingError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _replace_methods(module: nn.Module, edited: type[nn.Module]) -> None:
    """Give one object a class of its own: the edited methods before the original ones.

    It keeps the original's name, by which trainers and checkpoints know a model.
    """
    original = type(module)
    bases = (edited,) if issubclass(edited, original) else (edited, original)
    module.__class__ = type(original.__name__, bases, {"__module__": edited.__module__})


def create_fork(name: str, model: nn.Module, paths: list[str]) -> Path:
    """Write a fork that changes nothing yet: the source of the classes of ``paths``, to be edited.

    Args:
        name: of the fork; there must be none of it.
        model: whose submodules are meant.
        paths: of submodules, with ``*`` and ``?``; all that one path names must be of one class.
    """
    folder = fork_folder(name)
    if folder.exists():
        raise OptionError(f"there is a fork {name!r} already: {folder}")
    targets: dict[str, str] = {}
    sources: dict[str, str] = {}
    for pattern in paths:
        named = model.named_modules()
        kinds = {type(module) for path, module in named if fnmatchcase(path, pattern)}
        if len(kinds) != 1:
            found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
            raise OptionError(f"{pattern!r} names {found}; submodules of one class are needed")
        kind = kinds.pop()
        file = f"{kind.__name__.lower()}.py"
        targets[pattern], sources[file] = f"{file}:{kind.__name__}", _editable_source(kind)
    for file, source in sources.items():
        write_text(folder / file, source)
    described = {"model_class": type(model).__name__, "modules": targets}
    write_text(folder / _DESCRIPTION, json.dumps(described, indent=2) + "\n")
    return folder


def _editable_source(kind: type) -> str:
    """Return the source of a class, behind imports of everything that it can refer to."""
    module = inspect.getmodule(kind)
    if module is None:
        raise OptionError(f"the source of {kind.__name__} is not at hand")
    imports, names = ["from __future__ import annotations"], []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            line = ast.unparse(node)
            imports += [] if line in imports else [line]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name != kind.__name__:
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    if names:
        imports.append(f"from {module.__name__} import {', '.join(sorted(names))}")
    head = f'"""An edited copy of {module.__name__}.{kind.__name__}."""\n'
    return "\n".join([head, *imports, "", "", inspect.getsource(kind)])
