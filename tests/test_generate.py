"""`generate`: streaming, options, seeds, stopping, statistics."""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spikelet


def naive_greedy(model: spikelet.Model, prompt: list[int], count: int) -> list[int]:
    """Greedy generation over `forward` alone."""
    state, ids = model.new_state(), []
    logits = model.forward(prompt, state, all_logits=False)
    for _ in range(count):
        ids.append(int(logits.argmax()))
        logits = model.forward(ids[-1:], state, all_logits=False)
    return ids


@pytest.mark.parametrize("name", ["spikegpt-tiny", "spikegpt-tiny-ffnpre", "rwkv4-tiny"])
def test_greedy_text_is_the_argmax_of_forward(golden: Path, name: str) -> None:
    model = spikelet.load(golden / name, threads=1)
    prompt = [(7 * i) % 256 for i in range(600)]
    found = model.generate(prompt, max_new_tokens=40, temperature=0).run().ids
    assert found == naive_greedy(model, prompt, 40)


def test_a_token_is_its_text_and_more(writer: spikelet.Model) -> None:
    generation = writer.generate("abc", max_new_tokens=20, seed=3, logprobs=3)
    tokens = list(generation)
    assert len(tokens) == 20 == len(generation.ids)
    for token in tokens:
        assert isinstance(token, spikelet.Token)
        assert isinstance(token, str)
        assert 0 <= token.id < 256
        assert token.logprob < 0
        assert not token.drafted
        top = [entry.logprob for entry in token.top_logprobs]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert token.logprob <= top[0]
    assert "".join(tokens) == generation.text
    assert tokens == generation.tokens
    assert [token.id for token in tokens] == generation.ids


def test_a_token_is_frozen_and_can_be_stored(writer: spikelet.Model) -> None:
    token = writer.generate("abc", max_new_tokens=1, seed=3, logprobs=1).run().tokens[0]
    with pytest.raises(AttributeError, match="cannot be changed: id"):
        token.id = 3
    with pytest.raises(AttributeError, match="cannot be changed: id"):
        del token.id
    with pytest.raises(AttributeError, match="cannot be changed: more"):
        token.more = 3
    again = pickle.loads(pickle.dumps(token))
    assert (again, again.id, again.logprob) == (token, token.id, token.logprob)
    assert again.top_logprobs == token.top_logprobs


def test_log_probabilities_are_those_of_the_model(writer: spikelet.Model) -> None:
    done = writer.generate("abc", max_new_tokens=30, seed=5, temperature=2.0, top_k=9).run()
    scores = writer.score([*b"abc", *done.ids])[2:]
    found = np.array([token.logprob for token in done.tokens], dtype=np.float32)
    assert (found == scores).all()


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(min_size=1, max_size=8),
    seed=st.integers(0, 2**64 - 1),
    favourites=st.sets(st.sampled_from([*"é😀漢\u200dz".encode()]), min_size=1),
    stop=st.lists(st.sampled_from(["é", "😀", "z", "zz", "\ufffd", "漢z"]), max_size=2),
    include_stop=st.booleans(),
)
def test_the_pieces_are_the_text(
    writer: spikelet.Model,
    prompt: str,
    seed: int,
    favourites: set[int],
    stop: list[str],
    include_stop: bool,
) -> None:
    """Random bytes, many of them parts of characters: pieces join to the text of the bytes."""
    generation = writer.generate(
        prompt,
        max_new_tokens=40,
        seed=seed,
        logit_bias=dict.fromkeys(favourites, 8.0),
        stop=stop,
        include_stop=include_stop,
        ignore_eos=True,
    )
    pieces = list(generation)
    assert "".join(pieces) == generation.text
    assert all(is_whole(piece) for piece in pieces)
    text = codecs.decode(bytes(generation.ids), "utf-8", "replace")
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    if ends:
        end, length = min(ends)
        assert generation.finish_reason == "stop_string"
        assert generation.text == text[: end if include_stop else end + length]
    else:
        assert generation.finish_reason == "length"
        assert generation.text == text


def is_whole(piece: str) -> bool:
    return piece.encode().decode() == piece


def test_stop_strings_never_leak_a_part(writer: spikelet.Model) -> None:
    whole = writer.generate("abc", max_new_tokens=60, seed=8).run().text
    stop = whole[20:24]
    generation = writer.generate("abc", max_new_tokens=60, seed=8, stop=["nowhere near", stop])
    text = ""
    for piece in generation:
        text += piece
        assert whole.startswith(text)
        assert len(text) <= whole.find(stop)
    assert text == whole[: whole.find(stop)]
    assert generation.finish_reason == "stop_string"


def test_stop_ids_and_the_end_of_text(writer: spikelet.Model) -> None:
    free = writer.generate("x", max_new_tokens=50, seed=2, logit_bias={0: -math.inf}).run()
    assert 0 not in free.ids
    stop = free.ids[10]
    stopped = writer.generate("x", seed=2, logit_bias={0: -math.inf}, stop_ids=[stop]).run()
    assert stopped.finish_reason == "stop_id"
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    ended = writer.generate("x", seed=2, logit_bias={0: 100.0}).run()
    assert (ended.ids, ended.text, ended.finish_reason) == ([0], "", "eos")
    going = writer.generate(
        "x", seed=2, logit_bias={0: 100.0}, ignore_eos=True, max_new_tokens=5
    ).run()
    assert (going.ids, going.finish_reason) == ([0] * 5, "length")


def test_equal_seeds_give_equal_texts_and_unequal_rows_others(writer: spikelet.Model) -> None:
    def ids(**options: Any) -> list[int]:
        return writer.generate("seed", max_new_tokens=30, **options).run().ids

    assert ids(seed=4) == ids(seed=4) == ids(seed=4, row=0)
    assert ids(seed=4) != ids(seed=5)
    assert ids(seed=4) != ids(seed=4, row=1)
    assert ids(seed=2**64 - 1, row=2**32 - 1) == ids(seed=2**64 - 1, row=2**32 - 1)


def test_a_drawn_seed_is_told_and_repeats_the_text(writer: spikelet.Model) -> None:
    first, second = (writer.generate("seed", max_new_tokens=30) for _ in range(2))
    assert first.seed != second.seed
    assert first.seed == first.stats.seed == first.run().seed
    again = writer.generate("seed", max_new_tokens=30, seed=first.seed)
    assert again.run().ids == first.ids


def test_nothing_leaks_from_call_to_call(writer: spikelet.Model) -> None:
    texts = set()
    for _ in range(3):
        texts.add(writer.generate("abc", seed=1, max_new_tokens=20).run().text)
        writer.generate("something else entirely", seed=2, max_new_tokens=30).run()
        next(writer.generate("left in the middle", seed=3))
        writer.score("and a score")
    assert len(texts) == 1


def test_interleaved_generations_give_what_each_gives_alone(writer: spikelet.Model) -> None:
    prompts = ["one", "another", "a third"]
    alone = [
        writer.generate(p, seed=9, max_new_tokens=25, ignore_eos=True).run().ids for p in prompts
    ]
    together = [writer.generate(p, seed=9, max_new_tokens=25, ignore_eos=True) for p in prompts]
    for _ in range(25):
        for generation in together:
            next(generation)
    assert [generation.ids for generation in together] == alone


def test_closing(writer: spikelet.Model) -> None:
    generation = writer.generate("abc", seed=1, max_new_tokens=100)
    first = [next(generation) for _ in range(3)]
    assert generation.finish_reason is None
    assert repr(generation) == "<spikelet.Generation: 3 tokens, running>"
    generation.close()
    generation.close()
    assert generation.finish_reason == "cancelled"
    assert list(generation) == []
    assert generation.tokens == first
    assert generation.run().finish_reason == "cancelled"
    assert generation.stats.num_generated_tokens == 3
    assert repr(generation) == "<spikelet.Generation: 3 tokens, cancelled>"


def test_a_context_closes(writer: spikelet.Model) -> None:
    with writer.generate("abc", seed=1, max_new_tokens=100) as generation:
        next(generation)
    assert generation.finish_reason == "cancelled"
    with pytest.raises(ZeroDivisionError), writer.generate("abc") as generation:
        raise ZeroDivisionError
    assert generation.finish_reason == "cancelled"


def test_an_end_is_an_end(writer: spikelet.Model) -> None:
    generation = writer.generate("abc", seed=1, max_new_tokens=2)
    assert len(list(generation)) == 2
    assert next(generation, None) is None
    assert list(generation) == []
    generation.close()
    assert generation.finish_reason == "length"


def test_statistics(writer: spikelet.Model) -> None:
    generation = writer.generate("abcdef", seed=1, max_new_tokens=10)
    before = generation.stats
    assert (before.num_prompt_tokens, before.num_generated_tokens) == (0, 0)
    next(generation)
    during = generation.stats
    assert (during.num_prompt_tokens, during.num_generated_tokens) == (6, 1)
    done = generation.run()
    assert len(done.ids) == 10
    assert done.stats.num_generated_tokens == 10
    assert done.stats.prefill_seconds > 0
    assert done.stats.decode_seconds > 0
    assert done.stats.prefill_tokens_per_second > 0
    assert done.stats.decode_tokens_per_second > 0
    assert re.match(r"GenerationStats\(num_prompt_tokens=6, .*seed=1\)", repr(done.stats))
    assert str(done) == done.text
    assert repr(done) == f"<spikelet.Completion: {done.text!r}, length>"


def test_no_new_tokens(writer: spikelet.Model) -> None:
    done = writer.generate("abc", max_new_tokens=0).run()
    assert (done.text, done.ids, done.finish_reason) == ("", [], "length")


def test_an_empty_prompt_begins_a_text(writer: spikelet.Model, model: spikelet.Model) -> None:
    assert writer.generate("", seed=1, max_new_tokens=9).run().ids == (
        writer.generate([0], seed=1, max_new_tokens=9).run().ids
    )
    with pytest.raises(spikelet.OptionError, match=r"`prompt`.*names none that begins a text"):
        model.generate([])


def test_penalties_and_presets_act(writer: spikelet.Model) -> None:
    def ids(**options: Any) -> list[int]:
        return writer.generate("aaaa", max_new_tokens=40, seed=6, **options).run().ids

    plain = ids()
    for options in (
        {"temperature": 0.3},
        {"top_k": 2},
        {"top_p": 0.2},
        {"min_p": 0.6},
        {"typical_p": 0.2},
        {"repetition_penalty": 3.0},
        {"presence_penalty": 5.0},
        {"frequency_penalty": 5.0},
        {"logit_bias": {7: 20.0}},
    ):
        assert ids(**options) != plain, options
    assert ids(frequency_penalty=5.0, penalty_decay=0.1) != ids(frequency_penalty=5.0)
    both = {"temperature": 2.0, "top_p": 0.5}
    assert ids(**both, preset="rwkv") != ids(**both, preset="openai")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": -1}, spikelet.OptionError, "`temperature`: found -1, needed a finite number"),
    ({"temperature": math.nan}, spikelet.OptionError, "`temperature`: found NaN"),
    ({"temperature": math.inf}, spikelet.OptionError, "`temperature`: found inf"),
    ({"temperature": "hot"}, TypeError, "real number, not str"),
    ({"top_k": -3}, spikelet.OptionError, "`top_k`: found -3, needed a whole number, 0 or more"),
    ({"top_k": 1.5}, TypeError, "a whole number is needed, found float"),
    ({"top_p": 1.5}, spikelet.OptionError, "`top_p`: found 1.5, needed a number from 0 to 1"),
    ({"min_p": -0.5}, spikelet.OptionError, "`min_p`: found -0.5"),
    ({"typical_p": 2}, spikelet.OptionError, "`typical_p`: found 2"),
    ({"repetition_penalty": 0}, spikelet.OptionError, "`repetition_penalty`: found 0, .* above 0"),
    ({"presence_penalty": math.inf}, spikelet.OptionError, "`presence_penalty`: found inf"),
    ({"frequency_penalty": math.nan}, spikelet.OptionError, "`frequency_penalty`: found NaN"),
    ({"penalty_decay": 1.01}, spikelet.OptionError, "`penalty_decay`: found 1.01"),
    ({"logit_bias": {256: 1.0}}, spikelet.OptionError, "token id 256 is outside"),
    ({"logit_bias": {-1: 1.0}}, spikelet.OptionError, "`logit_bias`: found -1, needed token ids"),
    ({"logit_bias": {1: math.inf}}, spikelet.OptionError, "`logit_bias`: found inf"),
    ({"logit_bias": {1: "much"}}, TypeError, "real number, not str"),
    ({"logit_bias": [1, 2]}, TypeError, "a mapping of token ids to numbers is needed, found list"),
    ({"stop": ""}, spikelet.OptionError, '`stop`: found "", needed stop strings'),
    ({"stop": ["a", ""]}, spikelet.OptionError, '`stop`: found ""'),
    ({"stop": 3}, TypeError, "a str or a sequence of str is needed, found int"),
    ({"stop": [3]}, TypeError, "a str or a sequence of str is needed, found list"),
    ({"stop_ids": [256]}, spikelet.OptionError, "token id 256 is outside"),
    ({"stop_ids": [-1]}, spikelet.OptionError, "`stop_ids`: found -1"),
    ({"stop_ids": 3}, TypeError, "a sequence of token ids is needed, found int"),
    ({"max_new_tokens": -1}, spikelet.OptionError, "`max_new_tokens`: found -1"),
    ({"max_new_tokens": None, "logprobs": 257}, spikelet.OptionError, "`logprobs`: found 257"),
    ({"logprobs": -1}, spikelet.OptionError, "`logprobs`: found -1"),
    (
        {"seed": -1},
        spikelet.OptionError,
        r"`seed`: found -1, needed a whole number from 0 to 2\*\*64",
    ),
    ({"seed": 2**64}, spikelet.OptionError, "`seed`: found 18446744073709551616"),
    ({"seed": "x"}, TypeError, "a whole number is needed, found str"),
    ({"row": 2**32}, spikelet.OptionError, "`row`: found 4294967296"),
    ({"preset": "gpt"}, spikelet.OptionError, "`preset`: found gpt, needed openai or rwkv"),
    ({"ignore_eos": "yes"}, TypeError, "bool"),
    ({"warmth": 1}, TypeError, "unexpected keyword argument 'warmth'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_are_refused(
    writer: spikelet.Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for call in (writer.generate, writer.session().generate):
        with pytest.raises(error, match=message):
            call("abc", **options)
    if "row" not in options:
        with pytest.raises(error, match=message):
            writer.generate_batch(["abc"], **options)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 2**64, 1e308]))
ANYTHING = st.one_of(
    NUMBERS,
    st.none(),
    st.text(max_size=3),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.integers(-1, 300), NUMBERS, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(
    options=st.dictionaries(st.sampled_from([*spikelet.default_options()]), ANYTHING, max_size=4)
)
def test_whatever_is_asked_for_it_never_breaks(
    writer: spikelet.Model, options: dict[str, Any]
) -> None:
    """Any value of any option gives tokens or an error of ours that says what is wrong."""
    ours = (TypeError, spikelet.OptionError, spikelet.NotFiniteError)
    with contextlib.suppress(*ours), writer.generate("abc", **options) as generation:
        for _ in range(5):
            next(generation, None)


def test_options_that_make_logits_infinite(writer: spikelet.Model) -> None:
    with pytest.raises(ArithmeticError, match="logits: bias and penalties leave inf") as caught:
        writer.generate("abc", repetition_penalty=1e-45, max_new_tokens=100, seed=1).run()
    assert isinstance(caught.value, spikelet.NotFiniteError)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([256], spikelet.OptionError, "token id 256 is outside the model's vocabulary of 256"),
        ([-1], spikelet.OptionError, "`prompt`: found -1, needed token ids from 0 to 255"),
        (None, TypeError, "a str or a sequence of token ids is needed, found NoneType"),
        (b"abc", TypeError, "a sequence of token ids is needed, found bytes"),
        (1, TypeError, "a sequence of token ids is needed, found int"),
        ([1.5], TypeError, "a whole number is needed, found float"),
        ("\ud800", UnicodeEncodeError, "surrogates not allowed"),
    ],
)
def test_bad_prompts_are_refused(
    writer: spikelet.Model, prompt: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        writer.generate(prompt)


def test_options_are_keywords(writer: spikelet.Model) -> None:
    with pytest.raises(TypeError, match="positional"):
        writer.generate("abc", 20)  # type: ignore[call-arg]


def test_text_needs_a_tokenizer(model: spikelet.Model) -> None:
    calls: list[Callable[[], object]] = [
        lambda: model.generate("text"),
        lambda: model.generate_batch([[1], "text"]),
        lambda: model.session().feed("text"),
        lambda: model.score("text"),
        lambda: model.trace("text"),
        lambda: model.tokenizer,
    ]
    for call in calls:
        with pytest.raises(
            spikelet.TokenizerError, match="give token ids instead of text; no tokenizer found"
        ):
            call()


def test_the_models_own_options_hold_unless_overruled(bytes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bytes_folder, folder)
    wishes = {
        "temperature": 0.0,
        "max_new_tokens": 7,
        "stop": ["QQQ"],
        "preset": "rwkv",
        "top_k": 5,
        "chat_template": "{{ messages }}",
    }
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    model = spikelet.load(folder, threads=1)
    assert model.chat_template == wishes.pop("chat_template")
    assert model.generation_config == wishes
    greedy = model.generate("abc").run()
    assert greedy.ids == model.generate("abc", seed=1).run().ids
    assert len(greedy.ids) == 7
    assert len(model.generate("abc", max_new_tokens=9, ignore_eos=True).run().ids) == 9
    assert model.generate("abc", temperature=1.0, seed=3).run().ids != greedy.ids


def test_the_model_outlives_its_name(golden: Path) -> None:
    generation = spikelet.load(golden / "spikegpt-tiny", threads=1).generate(
        [1], max_new_tokens=5, temperature=0
    )
    gc.collect()
    assert len(list(generation)) == 5
