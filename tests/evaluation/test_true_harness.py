"""Against lm-evaluation-harness itself, with its own task files over local items, where installed.

`pip install lm_eval` beside the other requirements to run these; nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import spikelet
from spikelet.evaluation import encode_pair, evaluate

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")

ITEMS: dict[str, list[dict[str, Any]]] = {
    "lambada": [
        {"text": "Once upon a time there was a little girl named Lily. She liked to play"},
        {"text": "was some kind of\n\nPower"},
        {"text": "The café — “closed” she said"},
    ],
    "piqa": [
        {"goal": "boil an egg", "sol1": "Use hot water.", "sol2": "Use sand.", "label": 0},
        {"goal": "Öffne", "sol1": "ééééé", "sol2": "abcde", "label": 1},
        {"goal": "sleep", "sol1": "go to bed", "sol2": "eat a big house and run", "label": 1},
    ],
    "blimp": [
        {"UID": "u", "sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."},
        {"UID": "u", "sentence_good": "Ran who?", "sentence_bad": "Who ran?"},
        {"UID": "u", "sentence_good": "Same.", "sentence_bad": "Same."},
    ],
}
FILES = {
    "lambada": ("lambada/lambada_openai.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "blimp": ("blimp/_template_yaml", "train"),
}


def test_the_same_figures_as_the_harness(
    bundled: spikelet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.tasks import TaskManager

    from spikelet.evaluation.lm_eval import SpikeletLM

    folder = Path(lm_eval.__file__).parent / "tasks"
    files = {}
    for name, items in ITEMS.items():
        template, split = FILES[name]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(item) + "\n" for item in items))
        (tmp_path / f"{name}.yaml").write_text(
            f"include: {folder / template}\ntask: own_{name}\ntag: null\ndataset_path: json\n"
            f"dataset_name: null\ntraining_split: null\ndataset_kwargs:\n"
            f"  data_files:\n    {split}: {files[name]}\n"
        )
    found = lm_eval.simple_evaluate(
        model=SpikeletLM(bundled),
        tasks=[f"own_{name}" for name in ITEMS],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    for name, result in evaluate(bundled, files).items():
        for metric, own in result.metrics.items():
            theirs = found[f"own_{name}"]
            assert theirs[f"{metric},none"] == pytest.approx(own.value, rel=1e-9), (name, metric)
    again = lm_eval.simple_evaluate(
        model="spikelet",
        model_args={"path": str(bundled.path), "threads": 1},
        tasks=["own_lambada"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert again["own_lambada"] == found["own_lambada"]


def test_pairs_are_split_as_the_harness_splits_them(bundled: spikelet.Model) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

    class Splitter(TemplateLM):  # type: ignore[misc]
        eot_token_id = bundled.config.eos_token_id

        def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
            return bundled.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [(tuple(context), tuple(ids)) for _, context, ids in requests]

        def loglikelihood_rolling(self, requests: Any) -> Any: ...

        def generate_until(self, requests: Any) -> Any: ...

    pairs = [("Hello ", " world"), ("Hello", " world"), ("A  ", "b"), ("", " x"), ("a", " ")]
    pairs += [("", "<|endoftext|> x"), ("un", "believable"), ("x\n", "\ny"), ("狐", "狸 fox")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    assert Splitter().loglikelihood(requests, disable_tqdm=True) == [
        encode_pair(bundled, *pair) for pair in pairs
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
def test_windows_are_those_of_the_harness(bundled: spikelet.Model, length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from spikelet.evaluation.lm_eval import SpikeletLM

    text = "Once upon a time there was a bear — who lived in the woods near a lake. " * 2
    ids = bundled.tokenizer.encode(text)
    prefix = bundled.config.bos_token_id
    windows = map(make_disjoint_window, get_rolling_token_windows(ids, prefix, length, 1))
    own = SpikeletLM(bundled, max_length=length)._windows(text)
    assert [(list(context), list(part)) for context, part in own] == list(windows)
