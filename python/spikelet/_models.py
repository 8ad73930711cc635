"""Where models lie, and how a name becomes a folder."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from spikelet import _spikelet
from spikelet._spikelet import Model
from spikelet.errors import NotFoundError

_BUNDLED = Path(__file__).parent / "bundled"
DARWINKIT_HOMES = ("DARWIN_KIT_HOME", "DSPIKE_HOME")
"""Variables that DarwinKit's code and its documents name."""


def home() -> Path:
    """The folder of models and runs.

    It is `SPIKELET_HOME`, else DarwinKit's `DARWIN_KIT_HOME` or `DSPIKE_HOME`, else `spikelet` in
    the cache folder. Models lie in `models/<name>`, runs of training in `runs/<name>`. The folder
    need not exist.
    """
    for name in ("SPIKELET_HOME", *DARWINKIT_HOMES):
        given = os.environ.get(name)
        if given:
            return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "spikelet"


def local_models() -> dict[str, Path]:
    """Models that `load` finds by name, with their folders: the bundled one first."""
    found = {}
    if _is_model(_BUNDLED):
        found["bundled"] = _BUNDLED
    for folder in ("models", "runs"):
        place = home() / folder
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if _is_model(path):
                    found.setdefault(path.name, path)
    return found


def _is_model(path: Path) -> bool:
    weights = ("model.safetensors", "model.safetensors.index.json")
    return any((path / name).is_file() for name in weights)


def find_model(path_or_name: str | os.PathLike[str] | None = None) -> Path:
    """The folder or file of a model.

    It is found by an existing path, the name of a model or run, or None for the bundled model.

    Raises:
        NotFoundError: there is none; the message names those there are.
    """
    if path_or_name is None:
        path_or_name = "bundled"
    elif Path(path_or_name).exists():
        return Path(path_or_name)
    name = os.fspath(path_or_name)
    models = local_models()
    if name in models:
        return models[name]
    if name == "bundled":
        raise NotFoundError("this installation carries no model; give load() a path or a name")
    known = ", ".join(models) or "none"
    raise NotFoundError(
        f"{name}: no such file or folder, and no model of that name "
        f"(known: {known}; searched: {home()})"
    )


def load(
    path_or_name: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: Literal["auto", "f32", "bf16", "f16", "q8", "q4"] = "auto",
    threads: int | None = None,
    model_type: str | None = None,
    spike_embedding: bool | None = None,
    rescale_every: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Model:
    """Loads a model.

    Args:
        path_or_name: a model folder, a safetensors file, the authors' `.pth` file, or the name of a
            model or run under `home()`. None: the model that comes with the package.
        device: `"cpu"`; `"cuda"`, or `"cuda:1"` for another GPU than the first; `"auto"` is a GPU
            where one can be used, else the CPU, unless the environment variable `SPIKELET_DEVICE`
            says where. Results do not depend on it.
        dtype: format of the matrices in memory; `"auto"` is the file's own. `"q8"` and `"q4"` of
            a model that is not stored so are made while loading, without calibration: better
            once with `spikelet quantize`. States are always float32.
        threads: to compute with. None: the number of physical cores. Results do not depend on it.
        model_type: `"spikegpt"` or `"rwkv4"`, for files that do not say.
        spike_embedding: whether a SpikeGPT was trained with a binary embedding, for files that do
            not say.
        rescale_every: compatibility with the authors' SpikeGPT inference script, which halves
            activations after every so many layers (6 there). It changes what the neurons do.
            None: as the model's configuration says, normally not.
        progress: is called in this thread with the bytes read and the bytes to read, at first,
            about every 20 ms, and when all are read. What it raises stops the load.

    Raises:
        NotFoundError: there is no such file, folder or model.
        FormatError: a file is broken, or its tensors are not those of the model it claims to be.
        TokenizerError: the tokenizer is broken or does not fit the model.
        UnsupportedError: an architecture or format that this version, or the device, does not have.
        DeviceError: the GPU that is asked for cannot be used; the message says why.
        OptionError: an argument that makes no sense.

    Example:
        >>> model = spikelet.load("tests/golden/spikegpt-tiny", threads=1)
        >>> model.vocab_size, model.dtype, model.device
        (256, 'f32', 'cpu')
    """
    return _spikelet.load_model(
        find_model(path_or_name),
        device=device,
        dtype=dtype,
        threads=threads,
        model_type=model_type,
        spike_embedding=spike_embedding,
        rescale_every=rescale_every,
        progress=progress,
    )
