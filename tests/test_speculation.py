"""Speculative decoding through the package: the same text, whatever is drafted.

The engine's own tests let an oracle draft; here are the real drafters on models with a text to say.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

import spikelet
from spikelet import SpeculativeConfig

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = (
    "Once upon a time there was a little fox. Once upon a time there was a little",
    "The cat sat on the mat. The dog sat on the mat. The cow sat on",
    "One day, Lily and Tom went to the park. They",
    "1, 2, 3, 1, 2, 3, 1, 2,",
)


@pytest.fixture(scope="module")
def bundled() -> spikelet.Model:
    """The model of the package: it has something to say, and a prophet."""
    return spikelet.load()


@pytest.fixture(scope="module")
def small() -> spikelet.Model:
    """The same at 4 bits: its guesses are mostly right and often wrong."""
    return spikelet.load(dtype="q4")


def configurations(small: spikelet.Model) -> list[SpeculativeConfig | str]:
    """Every source, with given lengths and open ones."""
    made: list[SpeculativeConfig | str] = ["auto"]
    for method in ("ngram", "prophet", "prophet+ngram", "draft_model"):
        draft_model = small if method == "draft_model" else None
        made += [
            SpeculativeConfig(method, num_speculative_tokens=n, draft_model=draft_model)
            for n in ("auto", 1, 3, 16)
        ]
    return made


def settings() -> list[dict[str, Any]]:
    """Ways of drawing, with all that changes logits."""
    return [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 0.7, "frequency_penalty": 0.3, "logit_bias": {13: 2.0}},
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_texts_are_those_of_decoding_without_drafts(
    bundled: spikelet.Model, small: spikelet.Model, batch: int
) -> None:
    combinations = accepted = 0
    for options, seed in itertools.product(settings(), range(4)):
        options |= {"max_new_tokens": 24, "seed": seed, "ignore_eos": True}
        plain = bundled.generate_batch(PROMPTS, **options, speculative="off")
        for config in configurations(small):
            drafted = bundled.generate_batch(
                PROMPTS, **options, speculative=config, batch_size=batch
            )
            for prompt, one, other in zip(PROMPTS, plain, drafted, strict=True):
                what = f"{prompt!r} {options} {config}"
                assert other.ids == one.ids, what
                assert [t.logprob for t in other.tokens] == [t.logprob for t in one.tokens], what
                combinations += 1
                accepted += other.stats.num_accepted_tokens
                assert other.stats.num_accepted_tokens == sum(t.drafted for t in other.tokens)
    assert combinations >= 1000
    assert accepted >= combinations


def test_a_stream_is_the_same_and_tells_what_was_drafted(bundled: spikelet.Model) -> None:
    config = SpeculativeConfig("prophet", num_speculative_tokens=2)
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.8, "seed": 3}
    plain = list(bundled.generate(PROMPTS[0], **options, speculative="off"))
    generation = bundled.generate(PROMPTS[0], **options, speculative=config)
    drafted = list(generation)
    assert drafted == plain
    assert [t.id for t in drafted] == [t.id for t in plain]
    assert any(t.drafted for t in drafted)
    assert not any(t.drafted for t in plain)
    stats = generation.stats
    assert stats.num_drafts > 0
    assert stats.num_draft_tokens >= stats.num_accepted_tokens > 0
    assert stats.acceptance_rate == stats.num_accepted_tokens / stats.num_draft_tokens
    assert stats.mean_acceptance_length == pytest.approx(1 + stats.mean_accepted)
    assert sum(stats.accepted_histogram) == stats.num_drafts
    assert len(stats.acceptance_rate_per_position) == 2
    assert set(stats.by_source) == {"prophet"}
    assert stats.time_draft > 0
    assert stats.time_verify > 0
    assert stats.num_rounds < stats.num_generated_tokens


def test_sessions_stand_where_their_reader_stands(bundled: spikelet.Model) -> None:
    config = SpeculativeConfig("prophet+ngram", num_speculative_tokens=4)
    ends = []
    for speculative in ("off", config):
        session = bundled.session()
        session.feed(PROMPTS[0])
        with session.generate(
            max_new_tokens=40, temperature=0.0, speculative=speculative
        ) as generation:
            first = [token.id for token in itertools.islice(generation, 7)]
        again = session.generate(
            " The", max_new_tokens=20, temperature=0.9, seed=1, speculative=speculative
        ).run()
        ends.append((first, generation.ids, session.num_tokens, again.ids))
    assert ends[0] == ends[1]


def test_a_session_finds_repetitions_of_earlier_turns(bundled: spikelet.Model) -> None:
    session = bundled.session()
    session.feed("The big red bus went down the hill to the old mill. ")
    config = SpeculativeConfig("ngram", num_speculative_tokens=4)
    stats = (
        session.generate(
            "The big red bus went", max_new_tokens=4, temperature=0.0, speculative=config
        )
        .run()
        .stats
    )
    assert stats.num_draft_tokens > 0
    fresh = (
        bundled.generate(
            "The big red bus went", max_new_tokens=4, temperature=0.0, speculative=config
        )
        .run()
        .stats
    )
    assert fresh.num_draft_tokens == 0


def test_every_dtype_and_thread_count_agrees_with_itself() -> None:
    for dtype, threads in itertools.product(("f32", "q8", "q4"), (1, 2)):
        model = spikelet.load(dtype=dtype, threads=threads)
        options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.8, "seed": 5}
        plain = model.generate(PROMPTS[1], **options, speculative="off").run()
        config = SpeculativeConfig("prophet+ngram", num_speculative_tokens=3)
        assert model.generate(PROMPTS[1], **options, speculative=config).run().ids == plain.ids


@pytest.mark.parametrize("verify", ["token", "block"])
def test_other_rules_accept_and_end_as_asked(bundled: spikelet.Model, verify: Any) -> None:
    config = SpeculativeConfig("prophet", num_speculative_tokens=3, verify=verify)
    made = [
        bundled.generate(
            PROMPTS[2],
            max_new_tokens=50,
            temperature=0.8,
            seed=2,
            ignore_eos=True,
            speculative=config,
        ).run()
        for _ in range(2)
    ]
    assert made[0].ids == made[1].ids, "a given length makes it repeatable"
    assert len(made[0].ids) == 50
    assert made[0].stats.num_accepted_tokens > 5


def test_forced_acceptance_measures_the_machine(bundled: spikelet.Model) -> None:
    for probability in (0.0, 0.5, 1.0):
        config = SpeculativeConfig(
            "prophet", num_speculative_tokens=3, forced_acceptance=probability
        )
        stats = (
            bundled.generate(
                PROMPTS[2], max_new_tokens=200, seed=1, ignore_eos=True, speculative=config
            )
            .run()
            .stats
        )
        first = stats.acceptance_rate_per_position[0]
        assert abs(first - probability) < 0.2, probability


def test_costs_are_measured(bundled: spikelet.Model) -> None:
    costs = bundled.costs()
    passes = costs["pass"]
    assert passes[1] > 0
    assert list(passes) == sorted(passes)
    assert list(passes.values()) == sorted(passes.values())
    assert costs["draft"]["prophet"]["first"] > 0


def test_what_makes_no_sense_is_named() -> None:
    model = spikelet.load(GOLDEN / "rwkv4-tiny")
    with pytest.raises(spikelet.OptionError, match="prophet"):
        model.generate([1], speculative="prophet")
    with pytest.raises(spikelet.OptionError, match="eagle"):
        model.generate([1], speculative="eagle")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SpeculativeConfig"):
        model.generate([1], speculative=3)  # type: ignore[arg-type]
    with pytest.raises(spikelet.OptionError, match="num_speculative_tokens"):
        SpeculativeConfig(num_speculative_tokens=17)
    with pytest.raises(spikelet.OptionError, match="num_speculative_tokens"):
        SpeculativeConfig(num_speculative_tokens="many")  # type: ignore[arg-type]
    with pytest.raises(spikelet.OptionError, match="prompt_lookup_max"):
        model.generate([1], speculative=SpeculativeConfig("ngram", prompt_lookup_max=99))
    with pytest.raises(spikelet.OptionError, match="draft_model"):
        SpeculativeConfig("draft_model")
    with pytest.raises(spikelet.OptionError, match="verify"):
        SpeculativeConfig(verify="typical")  # type: ignore[arg-type]
    other = spikelet.load(GOLDEN / "spikegpt-tiny")
    if other.vocab_size != spikelet.load().vocab_size:
        config = SpeculativeConfig("draft_model", draft_model=spikelet.load())
        with pytest.raises(spikelet.SpikeletError, match=str(other.vocab_size)):
            other.generate([1], speculative=config)


def test_a_table_of_the_training_text_guesses(tmp_path: Path) -> None:
    bundled = spikelet.load()
    folder = tmp_path / "model"
    shutil.copytree(bundled.path, folder)
    texts = [
        bundled.generate(PROMPTS[2], max_new_tokens=150, seed=seed).run().text for seed in range(8)
    ]
    spikelet.build_ngram_table(folder, texts, max_bytes=1 << 16)
    model = spikelet.load(folder)
    options: dict[str, Any] = {"max_new_tokens": 80, "temperature": 0.6, "seed": 1}
    plain = model.generate(PROMPTS[2], **options, speculative="off").run()
    for config in ("auto", "table", SpeculativeConfig("table", num_speculative_tokens=2)):
        assert model.generate(PROMPTS[2], **options, speculative=config).run().ids == plain.ids
    config = SpeculativeConfig("table", num_speculative_tokens=2)
    stats = model.generate(PROMPTS[2], **options, speculative=config).run().stats
    assert set(stats.by_source) == {"table"}
    assert stats.num_accepted_tokens > 0
    with pytest.raises(spikelet.OptionError, match="build_ngram_table"):
        spikelet.load(GOLDEN / "rwkv4-tiny").generate([1], speculative="table")
