"""Data sets and tokenizers by their names on a hub, through the packages that know it.

Those packages are optional, and imported only when a name is given that is no file. They read
``HF_ENDPOINT`` themselves: it names a mirror of the hub.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from spikelet.training.errors import DataError


def load_hub_dataset(name: str) -> Any:
    """Load ``name`` or ``name:configuration`` with the ``datasets`` package."""
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise DataError(
            f"{name!r}: there is no such file, and data sets by name need the package datasets "
            "(pip install datasets). Without it, give a text file, a .jsonl file or a list of texts"
        ) from None
    path, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(path, configuration or None)
    except Exception as error:  # the package raises whatever its parts raise
        raise DataError(_unreachable("data set", name, error)) from error


def load_hub_tokenizer(name: str) -> Any:
    """Load a tokenizer with ``transformers``, or ``tokenizers`` alone where that is missing."""
    try:
        load = importlib.import_module("transformers").AutoTokenizer.from_pretrained
    except ModuleNotFoundError:
        from tokenizers import Tokenizer

        load = Tokenizer.from_pretrained
    try:
        return load(name)
    except Exception as error:  # as above
        raise DataError(_unreachable("tokenizer", name, error)) from error


def _unreachable(what: str, name: str, error: Exception) -> str:
    endpoint = os.environ.get("HF_ENDPOINT") or "not set"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"{name!r} is no file, and the {what} of that name could not be loaded from the hub: "
        f"{reason}. Without network, give files that were copied here; where the hub is out of "
        f"reach, name a mirror in HF_ENDPOINT (now {endpoint})"
    )
