"""spikelet as a model of lm-evaluation-harness; needs `pip install 'spikelet[eval]'`.

Importing this module registers the model "spikelet". The harness's own command with it:

    python -m spikelet.evaluation.lm_eval run --model spikelet --model_args path=FOLDER --tasks piqa

and from Python `lm_eval.simple_evaluate(model=SpikeletLM("FOLDER"), tasks=["piqa"])`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spikelet.evaluation.harness import HarnessAdapter

if TYPE_CHECKING:
    from spikelet.evaluation.scoring import Progress

try:
    _LM: Any = importlib.import_module("lm_eval.api.model").LM
    _register: Any = importlib.import_module("lm_eval.api.registry").register_model
except ModuleNotFoundError as error:
    raise ImportError(
        f"{error.name} is needed for this: pip install 'spikelet[eval]'", name=error.name
    ) from error


@_register("spikelet")
class SpikeletLM(HarnessAdapter, _LM):  # type: ignore[misc]
    """A model for the harness. It runs in this process.

    Args:
        path: a model folder, file or name, as for `spikelet.load`, or a loaded model. None: the
            bundled one.
        dtype: of the weights, as for `spikelet.load`.
        threads: as for `spikelet.load`.
        device: as for `spikelet.load`. None, and "cuda:0", which the harness's command says where
            nobody has asked for any device: "auto".
        max_length: forget what a model with a window of so many tokens would not see. None: the
            state remembers everything, nothing is cut off.
        batch_size: texts that are generated at once. It changes no answer.
        max_batch_size: the same, where `batch_size` is "auto".
        seed: of requests that sample.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        _LM.__init__(self)
        HarnessAdapter.__init__(self, *args, **options)

    def _bar(self, label: str) -> Progress:
        bar = importlib.import_module("tqdm").tqdm(desc=label)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return show


if __name__ == "__main__":
    importlib.import_module("lm_eval.__main__").cli_evaluate()
