"""The adapter for lm-evaluation-harness, asked by requests that look like the harness's."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import spikelet
from evaluation.naive import naive_score
from spikelet.errors import OptionError
from spikelet.evaluation.harness import HarnessAdapter

TEXT = "The fox — der Füchslein — ran, and ran, and ran."


def ask(*requests: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=request) for request in requests]


def test_log_likelihoods_are_those_of_plain_arithmetic(writer: spikelet.Model) -> None:
    pairs = [("The fox", " ran"), ("The fox ", "sat"), ("", "ran — off"), ("The fox", " ran")]
    answers = HarnessAdapter(writer).loglikelihood(ask(*pairs))
    for (context, continuation), (log_prob, greedy) in zip(pairs, answers, strict=True):
        start = list(context.rstrip().encode()) or [0]
        ids = list((context[len(context.rstrip()) :] + continuation).encode())
        expected = naive_score(writer, start, ids)
        assert log_prob == pytest.approx(expected[0], rel=1e-6)
        assert greedy is expected[1]
    assert isinstance(answers[0], tuple)


def test_what_greedy_decoding_writes_is_greedy(bundled: spikelet.Model) -> None:
    prompt = "Once upon a time"
    adapter = HarnessAdapter(bundled)
    (text,) = adapter.generate_until(ask((prompt, {"until": ["\n"], "max_gen_toks": 6})))
    answers = adapter.loglikelihood(ask((prompt, text), (prompt, " qqq")))
    assert [greedy for _, greedy in answers] == [True, False]


def test_a_rolling_text_is_one_stream(writer: spikelet.Model) -> None:
    (found,) = HarnessAdapter(writer).loglikelihood_rolling(ask((TEXT,)))
    assert found == pytest.approx(naive_score(writer, [0], list(TEXT.encode()))[0], rel=1e-6)
    assert HarnessAdapter(writer).loglikelihood_rolling(ask(("",), ("a",)))[0] == 0.0


@pytest.mark.parametrize("length", [1, 2, 7, 20, 49, 50, 51, 1000])
def test_rolling_windows(writer: spikelet.Model, length: int) -> None:
    """The harness's rule: full windows, but the last one begins as early as its length allows."""
    ids = list(TEXT.encode())
    stream = [0, *ids]
    total = 0.0
    done = 0
    while done < len(ids):
        end = min(done + length, len(ids))
        read_from = done if done == 0 else end - length
        total += naive_score(writer, stream[read_from : done + 1], ids[done:end])[0]
        done = end
    adapter = HarnessAdapter(writer, max_length=length)
    assert adapter.loglikelihood_rolling(ask((TEXT,)))[0] == pytest.approx(total, rel=1e-6)


def test_without_a_token_that_begins_a_text_the_first_is_not_scored(bytes_folder: Path) -> None:
    config = (bytes_folder / "config.json").read_text()
    folder = bytes_folder.with_name("no-eos")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.replace('"eos_token_id": 0', '"eos_token_id": null'))
    (folder / "model.safetensors").write_bytes((bytes_folder / "model.safetensors").read_bytes())
    adapter = HarnessAdapter(folder, threads=1)
    ids = list(TEXT.encode())
    expected = naive_score(adapter.model, ids[:1], ids[1:])[0]
    assert adapter.loglikelihood_rolling(ask((TEXT,)))[0] == pytest.approx(expected, rel=1e-6)
    assert adapter.loglikelihood(ask(("", TEXT)))[0][0] == pytest.approx(expected, rel=1e-6)


def test_a_window_cuts_the_beginning_of_a_context(writer: spikelet.Model) -> None:
    adapter = HarnessAdapter(writer, max_length=8)
    (found,) = adapter.loglikelihood(ask(("0123456789", "abc")))
    expected = naive_score(writer, list(b"456789"), list(b"abc"))[0]
    assert found[0] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(OptionError, match=r"max_length.*8 is too short for.* 9 tokens"):
        adapter.loglikelihood(ask(("0", "123456789")))


def test_generation_stops_and_is_greedy_unless_asked(bundled: spikelet.Model) -> None:
    adapter = HarnessAdapter(bundled, seed=3)
    prompts = ["Once upon a time", "The little fox"]
    plain = {"temperature": 0, "top_p": 1.0}
    requests = [(prompt, {"until": ["."], "max_gen_toks": 30}) for prompt in prompts]
    requests.append((prompts[0], {"until": "the", "max_new_tokens": 30, "top_k": None}))
    drawn = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 40}
    requests.append((prompts[1], drawn))
    found = adapter.generate_until(ask(*requests))
    for prompt, text in zip(prompts, found[:2], strict=True):
        made = bundled.generate(prompt, max_new_tokens=30, stop=["."], **plain).run()
        assert text == made.text
    made = bundled.generate(prompts[0], max_new_tokens=30, stop=["the"], **plain).run()
    assert found[2] == made.text
    made = bundled.generate(
        prompts[1], max_new_tokens=12, temperature=1.5, top_k=40, top_p=1.0, seed=3
    ).run()
    assert found[3] == made.text
    ignored = {"do_sample": False, "temperature": 1.5, "max_gen_toks": 12}
    assert found[0].startswith(adapter.generate_until(ask((prompts[0], ignored)))[0][:5])


def test_an_unknown_option_of_generation_is_refused(writer: spikelet.Model) -> None:
    with pytest.raises(OptionError, match=r"num_beams.*there are until, do_sample, max_new_tokens"):
        HarnessAdapter(writer).generate_until(ask(("x", {"num_beams": 4})))


def test_answers_go_into_the_harness_cache(writer: spikelet.Model) -> None:
    adapter: Any = HarnessAdapter(writer)
    kept: list[tuple[Any, ...]] = []
    adapter.cache_hook = SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
    answers = adapter.loglikelihood(ask(("a", "b"), ("c", "d")))
    rolling = adapter.loglikelihood_rolling(ask(("abc",)))
    assert kept == [
        ("loglikelihood", ("a", "b"), answers[0]),
        ("loglikelihood", ("c", "d"), answers[1]),
        ("loglikelihood_rolling", ("abc",), rolling[0]),
    ]


@pytest.mark.parametrize(("given", "size"), [(None, 64), ("auto", 64), (5, 5), ("7", 7)])
def test_batch_sizes_as_the_harness_gives_them(
    writer: spikelet.Model, given: Any, size: int
) -> None:
    assert HarnessAdapter(writer, batch_size=given, max_batch_size=64).batch_size == size


def test_wrong_options(bytes_folder: Path) -> None:
    with pytest.raises(OptionError, match=r"max_length.*at least 1, not 0"):
        HarnessAdapter(bytes_folder, max_length=0)
    with pytest.raises(OptionError, match="device"):
        HarnessAdapter(bytes_folder, device="tpu")


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cuda:0"])
def test_devices_as_the_harness_names_them(bytes_folder: Path, device: str | None) -> None:
    """Its command says "cuda:0" where nobody asked for one."""
    assert HarnessAdapter(bytes_folder, device=device, threads=1).model.vocab_size == 256


@pytest.fixture
def no_adapter() -> Iterator[None]:
    """The module has not been imported, and what a test imports is forgotten."""
    name = "spikelet.evaluation.lm_eval"
    kept = sys.modules.pop(name, None)
    yield
    sys.modules.pop(name, None)
    if kept is not None:
        sys.modules[name] = kept


@pytest.mark.usefixtures("no_adapter")
def test_without_the_harness_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ImportError, match=r"pip install 'spikelet\[eval\]'"):
        importlib.import_module("spikelet.evaluation.lm_eval")


@pytest.mark.usefixtures("no_adapter")
def test_with_the_harness_it_is_registered_as_a_model_of_it(
    monkeypatch: pytest.MonkeyPatch, bytes_folder: Path
) -> None:
    """With modules that look like the harness's."""
    models: dict[str, type] = {}

    class LM:
        def __init__(self) -> None:
            self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)

    class Bar:
        def __init__(self, desc: str) -> None:
            self.n, self.closed = 0, False

        def update(self, count: int) -> None:
            self.n += count

        def close(self) -> None:
            assert self.n == 2

    def register_model(name: str) -> Any:
        return lambda cls: models.setdefault(name, cls)

    contents = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.registry": {"register_model": register_model},
        "tqdm": {"tqdm": Bar},
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    found = importlib.import_module("spikelet.evaluation.lm_eval")
    assert models == {"spikelet": found.SpikeletLM}
    model = models["spikelet"](path=str(bytes_folder), threads=1, batch_size=1, device="cuda:0")
    assert isinstance(model, LM)
    requests = ask(("a", "b"), ("a", "c"))
    assert model.loglikelihood(requests) == HarnessAdapter(bytes_folder).loglikelihood(requests)  # type: ignore[attr-defined]
