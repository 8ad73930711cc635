"""Runs base and speculative decoding in turns, over the same prompts and seeds.

One turn decodes every prompt of a class with base decoding and with every variant, in an order that
goes forth and back from turn to turn, prompt by prompt: what is compared runs within the same
moments. The first turn does not count. All write equally many tokens (the end-of-text token does
not end a text here), from equal states; the prompt's own pass is not timed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import spikelet
from spikelet.bench import machine as machines
from spikelet.bench import prompts as texts
from spikelet.bench.figures import Figure, there_and_back
from spikelet.bench.report import Report, Row
from spikelet.bench.totals import Totals
from spikelet.errors import OptionError

if TYPE_CHECKING:
    from spikelet import Model

Count = int | str
Progress = Callable[[int, int, str], object]
Ids = list[int]

MOST_REPETITIONS = 8
"""So many times the repetitions asked for, a doubtful row is measured at most."""
CEILING_POSITIONS = 8
PLAIN: dict[str, Any] = {
    "ignore_eos": True,
    "stop": [],
    "stop_ids": [],
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
}
"""Nothing but the temperature: figures of models with settings of their own can be compared."""


@dataclass(frozen=True)
class Variant:
    """A way to speculate."""

    method: str
    num_speculative_tokens: Count
    verify: str
    forced_acceptance: float | None
    draft_model: Model | None = None

    def config(self) -> spikelet.SpeculativeConfig:
        """As `generate` takes it."""
        # The engine knows the names, and says which it wants.
        given: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return spikelet.SpeculativeConfig(**given)

    def promises(self, temperature: float) -> str:
        """What holds for its text.

        `"identical"` to base decoding's; of the same `"distribution"`; `"forced"`: not the model's.
        """
        if self.forced_acceptance is not None:
            return "forced"
        if temperature == 0 or self.verify in ("auto", "coupled"):
            return "identical"
        return "distribution"


@dataclass
class Side:
    """What was found of one way to decode."""

    speculative: Any
    seconds: list[float] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    totals: Totals = field(default_factory=Totals)
    ids: list[Ids] = field(default_factory=list)
    """Of the last turn."""


class Group:
    """All variants of one class, temperature and number of rows, and base decoding beside them."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Ids],
        temperature: float,
        tokens: int,
        batch_size: int,
        variants: Sequence[Variant],
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.tokens = tokens
        self.batches = batched(prompts, batch_size)
        self.variants = list(variants)
        self.sides = [Side(variant.config()) for variant in variants]
        # Base decoding has times for every variant: one that is measured again has its own pairs.
        self.base = [Side("off") for _ in variants]

    @property
    def timed_tokens(self) -> int:
        """In a turn: the first token of a text comes from the prompt's pass."""
        return sum(len(batch) for batch in self.batches) * (self.tokens - 1)

    def turn(self, number: int, which: Sequence[int], *, counts: bool = True) -> None:
        """One turn of some variants."""
        once = Side("off")
        sides = [once, *(self.sides[i] for i in which)]
        spent = [0.0] * len(sides)
        for side in sides:
            side.ids = []
        for seed, batch in enumerate(self.batches):
            for i in there_and_back(range(len(sides)), number):
                spent[i] += self.decode(sides[i], batch, seed, counts=counts)
        if not counts:
            return
        for base in (self.base[i] for i in which):
            base.seconds.append(spent[0])
            base.digests.add(digest(once.ids))
            base.ids = once.ids
        for side, seconds in zip(sides[1:], spent[1:], strict=True):
            side.seconds.append(seconds)
            side.digests.add(digest(side.ids))

    def decode(self, side: Side, batch: Sequence[Ids], seed: int, *, counts: bool) -> float:
        """Seconds without the prompts' pass."""
        begun = perf_counter()
        completions = self.model.generate_batch(
            batch,
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            **PLAIN,
            seed=seed,
            batch_size=len(batch),
            speculative=side.speculative,
        )
        seconds = perf_counter() - begun
        side.ids += [completion.ids for completion in completions]
        if counts and side.speculative != "off":
            for completion in completions:
                side.totals.add(completion.stats)
        return seconds - max(completion.stats.prefill_seconds for completion in completions)

    def speedup(self, i: int) -> Figure:
        """Of a variant, turn by turn."""
        return Figure.ratio(self.base[i].seconds, self.sides[i].seconds)

    def text(self, i: int) -> str:
        """What became of a variant's promise."""
        promised = self.variants[i].promises(self.temperature)
        if promised != "identical":
            return promised
        found = self.base[i].digests | self.sides[i].digests
        return "identical" if len(found) == 1 else "DIFFERS"

    def ceiling(self) -> list[float]:
        """How often a drafted token that always is the likeliest can be accepted, by position.

        The mean over the base's text of the product of the greatest probabilities: what no guess of
        single tokens can beat. Drafts that are drawn from a distribution of their own can.
        """
        if self.temperature == 0:
            return [1.0] * CEILING_POSITIONS
        found = []
        prompts = [ids for batch in self.batches for ids in batch]
        for prompt, ids in zip(prompts, self.base[0].ids, strict=True):
            logits = self.model.forward([*prompt, *ids[:-1]], self.model.new_state())
            found.append(likeliest(logits[len(prompt) - 1 :] / self.temperature))
        return [
            float(np.mean([np.prod(p[t : t + n]) for p in found for t in range(len(p) - n + 1)]))
            for n in range(1, CEILING_POSITIONS + 1)
            if all(len(p) >= n for p in found)
        ]


def likeliest(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The greatest probability of each line."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: np.ndarray[Any, Any] = 1 / np.exp(shifted, dtype=np.float64).sum(axis=1)
    return found


def batched(prompts: Sequence[Ids], size: int) -> list[list[Ids]]:
    """Prompts in batches of one size: the first ones again where they do not suffice."""
    count = -(-len(prompts) // size) * size
    repeated = [prompts[i % len(prompts)] for i in range(count)]
    return [repeated[i : i + size] for i in range(0, count, size)]


def digest(texts_: Sequence[Ids]) -> str:
    """SHA-256 of ids."""
    found = hashlib.sha256()
    for ids in texts_:
        found.update(np.asarray([len(ids), *ids], "<u4").tobytes())
    return found.hexdigest()


def run(
    model: Model | str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[str] | None = None,
    prompts: Mapping[str, Sequence[str | Sequence[int]]] | None = None,
    temperatures: Sequence[float] = (0.0, 1.0),
    methods: Sequence[str] = ("auto",),
    num_speculative_tokens: Sequence[Count] = ("auto",),
    batch_sizes: Sequence[int] = (1,),
    verify: str = "auto",
    forced_acceptance: float | None = None,
    draft_model: Model | None = None,
    max_new_tokens: int = 128,
    prompts_per_class: int = 4,
    repetitions: int = 5,
    settle: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measures speculative beside base decoding: a row for every combination of what is asked.

    Args:
        model: a model, or what `spikelet.load` takes.
        classes: of the package's prompts, see `CLASSES`. None: all that the model can read; none if
            `prompts` are given.
        prompts: prompts of one's own, as texts or as ids, by the name of their class.
        temperatures: 0 is greedy decoding. All other sampling options are off.
        methods: as in `SpeculativeConfig`. `"off"` is base decoding against itself: the noise.
        num_speculative_tokens: lengths of drafts, or `"auto"`.
        batch_sizes: rows decoded together.
        verify: as in `SpeculativeConfig`.
        forced_acceptance: accept drafted tokens with this probability, whatever they are. The text
            is then not the model's; it shows what the machine does at such a rate.
        draft_model: the smaller model of method `"draft_model"`.
        max_new_tokens: tokens of every text, at least 2.
        prompts_per_class: the first so many of each class.
        repetitions: turns that count.
        settle: a row whose speed-up may be below this is measured again, up to eight times as long.
        progress: is called with the turns done, all turns, and what is measured.

    Raises:
        OptionError: something that cannot be.
        TokenizerError: texts, and a model that reads ids only.
    """
    if model is None or isinstance(model, str | os.PathLike):
        model = spikelet.load(model)
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 2),
        ("repetitions", repetitions, 1),
        ("prompts_per_class", prompts_per_class, 1),
        ("batch_sizes", min(batch_sizes), 1),
    ):
        if value < least:
            raise OptionError(f"option `{name}` needs at least {least}, not {value}")
    names = [] if prompts and classes is None else texts.choose_classes(model, classes)
    ids = texts.token_ids(model, names, prompts or {}, prompts_per_class)
    # Base decoding drafts nothing, of whatever length.
    ways = dict.fromkeys(
        (method, "auto" if method == "off" else count)
        for method, count in product(methods, num_speculative_tokens)
    )
    variants = [
        Variant(method, count, verify, forced_acceptance, draft_model) for method, count in ways
    ]
    groups = list(product(ids, temperatures, batch_sizes))
    total, done = len(groups) * (repetitions + 1), 0
    machine = machines.machine()
    given = machines.given(model.threads)
    report = Report(machine, {model.threads: given}, [cost_entry(model, given)])

    def tell(note: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total, note)

    for name, temperature, size in groups:
        group = Group(model, ids[name], temperature, max_new_tokens, size, variants)
        note = f"{name}, temperature {temperature:g}"
        everything = range(len(variants))
        for number in range(repetitions + 1):
            # The first turn warms up.
            group.turn(number, everything, counts=number > 0)
            tell(note)
        if settle is not None:
            measure_again(group, repetitions, settle)
        ceiling = group.ceiling()
        report.rows.extend(row(group, i, name, size, ceiling) for i in everything)
    return report


def measure_again(group: Group, repetitions: int, bound: float) -> None:
    """More turns for variants that may be slower than they may be, until it is clear."""
    for i in range(len(group.variants)):
        for number in range((MOST_REPETITIONS - 1) * repetitions):
            found = group.speedup(i)
            if number % repetitions == 0 and (
                found.low >= bound or (found.high < bound and number > 0)
            ):
                break
            group.turn(number, [i])


def row(group: Group, i: int, name: str, batch_size: int, ceiling: list[float]) -> Row:
    """What was found of a variant."""
    variant, side, base = group.variants[i], group.sides[i], group.base[i]
    model, totals = group.model, side.totals
    rounds = max(totals.num_rounds, 1)
    spent = sum(side.seconds) / len(side.seconds)
    per_turn = len(side.seconds)
    known = totals.time_draft + totals.time_verify + totals.time_accept
    return Row(
        model=model.path.name,
        prompt_class=name,
        temperature=group.temperature,
        method=variant.method,
        num_speculative_tokens=variant.num_speculative_tokens,
        verify=variant.verify,
        forced_acceptance=variant.forced_acceptance,
        batch_size=batch_size,
        dtype=model.dtype,
        threads=model.threads,
        prompts=sum(len(batch) for batch in group.batches),
        tokens=group.tokens,
        base_tokens_per_second=Figure.of([group.timed_tokens / s for s in base.seconds]),
        tokens_per_second=Figure.of([group.timed_tokens / s for s in side.seconds]),
        speedup=group.speedup(i),
        predicted_speedup=totals.predicted_speedup,
        mean_draft_length=totals.mean_draft_length,
        acceptance_rate=totals.acceptance_rate,
        mean_acceptance_length=totals.mean_acceptance_length,
        acceptance_rate_per_position=totals.acceptance_rate_per_position,
        one_hot_ceiling=ceiling,
        accepted_histogram=totals.histogram,
        by_source=totals.by_source,
        draft_ms=1e3 * totals.time_draft / rounds,
        verify_ms=1e3 * totals.time_verify / rounds,
        accept_ms=1e3 * totals.time_accept / rounds,
        # Every row counts the time of all rows of its step.
        other_ms=1e3 * max(spent * per_turn * batch_size - known, 0.0) / rounds,
        base_ms=1e3 * sum(base.seconds) / len(base.seconds) / group.timed_tokens * batch_size,
        rounds=totals.num_rounds // per_turn,
        chose_base=totals.chose_base,
        text=group.text(i),
        sha256=sorted(side.digests),
        base_sha256=sorted(base.digests),
    )


def cost_entry(model: Model, found: Mapping[str, float]) -> dict[str, Any]:
    """What passes take: now, by the engine's own costs, and on the roofline."""
    passes = machines.measure_passes(model)
    known = model.costs()
    return {
        "model": model.path.name,
        "dtype": model.dtype,
        "threads": model.threads,
        "pass": passes,
        "roofline": {t: machines.pass_bound(model, t, found) for t in passes},
        "engine": known["pass"],
        "draft": {source: cost["next"] for source, cost in known["draft"].items()},
    }
