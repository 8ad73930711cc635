"""What the neurons of a trained model do while it reads a text: the spike raster of the report.

A model has thousands of neurons, a page a few hundred lines. Of every layer's neurons those that
fire at least once are ranked by their rate and an even selection of the ranks is shown, so the
picture has the quiet and the busy ones in their true proportion; how many are silent is told.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spikelet import Tokenizer

MAX_TOKENS = 128
_MAX_LETTERS = 64 * MAX_TOKENS
_LINES = 300
"""Of the whole picture, over all layers."""
DEFAULT_TEXT = (
    "Once upon a time there was a little fox who lived at the edge of the forest. Every morning "
    "she counted the birds, and every evening she told her mother how many there were."
)
SITES = ("after time mixing", "after channel mixing")


def make_raster(folder: Path, text: str) -> dict[str, Any]:
    """The raster of the model in `folder`, as JSON for the page.

    Raises:
        SpikeletError: there is no model, or it cannot read the text.
    """
    import spikelet

    model = spikelet.load(folder, device="cpu")  # where neurons can be watched
    ids = model.tokenizer.encode(text[:_MAX_LETTERS])
    if not ids:
        raise spikelet.OptionError("option `text`: it is empty; a raster needs at least one token")
    shown = ids[:MAX_TOKENS]
    trace = model.trace(shown)
    spikes = trace.spikes
    bands, packed = _bands(spikes)
    per_token = spikes.mean(axis=(0, 1, 3)) if len(spikes) else []
    surprise = -model.score(shown) / math.log(2)
    return {
        "tokens": [_token_text(model.tokenizer, id) for id in shown],
        "cut": len(ids) > len(shown),
        "surprise": [None, *(round(float(bits), 2) for bits in surprise)],
        "share": [round(float(share), 4) for share in per_token],
        "bands": bands,
        "bits": base64.b64encode(packed).decode("ascii"),
        "relu2": [[round(float(v), 3) for v in layer] for layer in trace.relu2_density],
    }


def _bands(spikes: NDArray[np.uint8]) -> tuple[list[dict[str, Any]], bytes]:
    """The shown neurons of each layer and site, and their spikes: a bit each, rows of tokens."""
    if not len(spikes):
        return [], b""
    layers, sites, _, neurons = spikes.shape
    lines = min(neurons, max(6, min(32, _LINES // (layers * sites))))
    bands, rows = [], []
    for layer in range(layers):
        for site in range(sites):
            fired = spikes[layer, site]
            counts = fired.sum(axis=0)
            chosen = choose_neurons(counts, lines)
            rows.append(fired[:, chosen].T)
            bands.append(
                {
                    "layer": layer,
                    "site": site,
                    "rate": round(float(fired.mean()), 4),
                    "silent": int((counts == 0).sum()),
                    "of": neurons,
                    "neurons": [int(index) for index in chosen],
                }
            )
    return bands, np.packbits(np.stack(rows).reshape(-1)).tobytes()


def choose_neurons(counts: NDArray[Any], lines: int) -> NDArray[np.intp]:
    """So many neurons, the busiest first: even over the ranks of those that fire at all.

    Where fewer than `lines` fire, silent ones fill the rest.
    """
    order = np.argsort(-counts.astype(np.int64), kind="stable")
    active = order[: max(int((counts > 0).sum()), lines)]
    chosen: NDArray[np.intp] = active[np.linspace(0, len(active) - 1, lines).round().astype(int)]
    return chosen


def _token_text(tokenizer: Tokenizer, id: int) -> str:
    data = tokenizer.token_bytes(id)
    if not data:
        return tokenizer.id_to_token(id) or f"#{id}"
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # a part of a character
        return data.hex(" ").upper()
