"""Part `exact`: whatever the GPU computes has the bits that the CPU computes.

That is what the engine promises, for every format, number of tokens in a pass, batch, and way of
driving the card, so nothing here has a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapes import Shape

import spikelet
from gpu_check import models
from gpu_check.child import ROOT, Context
from gpu_check.modes import DEFAULT, MODES, mode
from gpu_check.record import Put, Unit

GOLDEN = ("spikegpt-tiny", "spikegpt-tiny-ffnpre", "spikegpt-tiny-realemb", "rwkv4-tiny")
ODD = (
    Shape("odd-200", "spikegpt", 3, 200, 1000),
    Shape("odd-72", "rwkv4", 2, 72, 515),
    Shape("odd-456", "spikegpt", 2, 456, 2049),
)
"""Widths that are multiples of 8 and of nothing that the kernels' tiles are."""
FORMATS = ("f32", "bf16", "f16", "q8")
CUTS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 64, 100)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"top_k": 5, "temperature": 0.7},
    {"top_p": 0.9, "logprobs": 3},
    {"typical_p": 0.8, "min_p": 0.01},
    {"preset": "rwkv", "top_p": 0.8, "temperature": 1.3},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"logit_bias": {3: 4.0, 5: -2.0}, "temperature": 0.0},
)


@dataclass(frozen=True)
class Case:
    """A model in a format."""

    name: str
    dtype: str
    find: Callable[[], Path | None]
    tokens: int
    """Tokens that each check reads or makes."""
    rows: Sequence[int] = (1, 2, 3, 8, 9, 33)
    """Sizes of batches."""
    whole: bool = True
    """Whether every check runs, or only the first ones: large models are slow on a CPU."""


def cases(context: Context) -> list[Case]:
    """Return them, those that matter most first."""
    tokens = 9 if context.dry else 100
    rows = (1, 3) if context.dry else (1, 2, 3, 8, 9, 33)

    def golden(name: str, dtype: str) -> Case:
        return Case(name, dtype, lambda: ROOT / "tests" / "golden" / name, tokens, rows)

    def random(shape: Shape, dtype: str, tokens: int, *, whole: bool = True) -> Case:
        def find() -> Path:
            return models.folder(shape, context.work, context.torch_device())

        return Case(shape.name, dtype, find, tokens, rows if whole else (3, 17), whole)

    found = [golden(name, "f32") for name in GOLDEN]
    if context.dry:
        small, other = models.TINY
        return [random(small, "q8", tokens), random(other, "f16", tokens, whole=False), found[0]]
    found += [Case("bundled", dtype, lambda: None, 300, rows) for dtype in ("f16", "q8")]
    found += [golden("spikegpt-tiny", dtype) for dtype in FORMATS[1:]]
    found += [random(shape, dtype, tokens) for dtype in FORMATS for shape in ODD]
    large = ((models.SPIKEGPT_216M, "bf16"), (models.SPIKEGPT_216M, "q8"))
    large += ((models.RWKV4_169M, "f16"), (models.RWKV4_169M, "f32"), (models.RWKV4_1B5, "bf16"))
    found += [random(shape, dtype, 20, whole=False) for shape, dtype in large]
    return [*found, *(Case("bundled", dtype, lambda: None, 300, rows) for dtype in ("bf16", "f32"))]


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> str | None:
    """Say where two arrays have other bits; None where they have not."""
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    if found.shape != expected.shape:
        return f"shape {found.shape}, not {expected.shape}"
    other = np.flatnonzero(found.view(np.uint32) != expected.view(np.uint32))
    if other.size == 0:
        return None
    where = np.unravel_index(int(other[0]), found.shape)
    place = [int(i) for i in where]
    pair = f"{found[where]!r}, not {expected[where]!r}"
    return f"{other.size} of {found.size} differ, first at {place}: {pair}"


def of_states(found: spikelet.State, expected: spikelet.State) -> str | None:
    """Say in which field two states differ."""
    mine, theirs = found.to_numpy(), expected.to_numpy()
    if mine.keys() != theirs.keys():
        return "other fields"
    for name, array in theirs.items():
        said = difference(mine[name], array)
        if said:
            return f"{name}: {said}"
    return None


def of_texts(found: Sequence[Any], expected: Sequence[Any]) -> str | None:
    """Say where completions have other tokens or other probabilities."""
    for row, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine.ids != theirs.ids:
            pairs = zip(mine.ids, theirs.ids, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), "the end")
            return f"row {row}: other tokens from {at} on"
        given = [token.logprob for token in theirs.tokens]
        if [token.logprob for token in mine.tokens] != given:
            return f"row {row}: other log probabilities"
    return None


@dataclass
class Pair:
    """A model on the device and the same on the CPU."""

    case: Case
    here: spikelet.Model
    there: spikelet.Model
    ids: list[int]

    def forward(self) -> str | None:
        """One pass over all tokens, logits after each."""
        mine, theirs = self.there.new_state(), self.here.new_state()
        expected = self.here.forward(self.ids, theirs)
        found = self.there.forward(self.ids, mine)
        return difference(found, expected) or of_states(mine, theirs)

    def cuts(self) -> str | None:
        """The same in passes of many lengths, logits after the last token among them."""
        theirs = self.here.new_state()
        expected = self.here.forward(self.ids, theirs)
        for length in (cut for cut in CUTS if cut < len(self.ids)):
            mine = self.there.new_state()
            starts = range(0, len(self.ids), length)
            parts = [self.there.forward(self.ids[at : at + length], mine) for at in starts]
            said = difference(np.concatenate(parts), expected) or of_states(mine, theirs)
            if said:
                return f"passes of {length}: {said}"
        last = self.there.forward(self.ids, self.there.new_state(), all_logits=False)
        return difference(last, expected[-1])

    def moved(self) -> str | None:
        """A state that goes from the CPU to the device and back."""
        half = len(self.ids) // 2
        theirs = self.here.new_state()
        expected = self.here.forward(self.ids, theirs)
        begun = self.here.new_state()
        self.here.forward(self.ids[:half], begun)
        mine = self.there.new_state(begun.to_numpy())
        other = mine.copy()
        said = difference(self.there.forward(self.ids[half:], mine), expected[half:])
        if said or (said := of_states(mine, theirs)):
            return said
        back = self.here.new_state(other.to_numpy())
        return difference(self.here.forward(self.ids[half:], back), expected[half:])

    def text(self, speculative: object, **options: object) -> str | None:
        """A text; the CPU writes it without guessing."""
        given = {"max_new_tokens": self.case.tokens, "seed": 3, "ignore_eos": True, **options}
        prompt = self.ids[:7] * 2
        expected = self.here.generate(prompt, speculative="off", **given).run()  # type: ignore[arg-type]
        found = self.there.generate(prompt, speculative=speculative, **given).run()  # type: ignore[arg-type]
        return of_texts([found], [expected])

    def options(self) -> str | None:
        """What bends the distribution: tokens are drawn where the logits are."""
        for given in OPTIONS:
            said = self.text("off", **given)
            if said:
                return f"{given}: {said}"
        return None

    def batch(self, rows: int, speculative: object = "off") -> str | None:
        """Texts of many rows whose prompts have other lengths."""
        prompts = [self.ids[i % 5 : i % 5 + 1 + i % 6] for i in range(rows)]
        count = max(4, self.case.tokens // 4)
        given: dict[str, Any] = {"max_new_tokens": count, "seed": 5, "ignore_eos": True}
        given["batch_size"] = rows
        expected = self.here.generate_batch(prompts, speculative="off", **given)
        return of_texts(
            self.there.generate_batch(prompts, speculative=speculative, **given), expected
        )

    def session(self) -> str | None:
        """A conversation and its fork."""
        found = []
        for model in (self.there, self.here):
            session = model.session()
            session.feed(self.ids[:9])
            other = session.fork()
            parts = [session.generate(max_new_tokens=6, seed=1).run()]
            session.feed(self.ids[3:5])
            parts += [one.generate(max_new_tokens=6, seed=2).run() for one in (session, other)]
            found.append(parts)
        return of_texts(*found)

    def together(self) -> str | None:
        """Four threads that use one model at once."""
        given: dict[str, Any] = {"max_new_tokens": self.case.tokens, "ignore_eos": True}
        given["speculative"] = "off"

        def write(model: spikelet.Model, seed: int) -> Any:
            return model.generate(self.ids[seed : seed + 3], seed=seed, **given).run()

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda seed: write(self.there, seed), range(4)))
        return of_texts(found, [write(self.here, seed) for seed in range(4)])

    def scores(self) -> str | None:
        """Probabilities of a given text."""
        return difference(self.there.score(self.ids), self.here.score(self.ids))

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Return all, by name."""
        guess = spikelet.SpeculativeConfig("ngram", num_speculative_tokens=4)
        found: dict[str, Callable[[], str | None]] = {
            "a pass": self.forward,
            "cuts into passes": self.cuts,
            "greedy text": lambda: self.text("off", temperature=0.0),
            "sampled text": lambda: self.text("off"),
            "text, guessing from repetitions": lambda: self.text(guess),
        }
        if self.case.name == "bundled":
            found["text, guessing by the prophet"] = lambda: self.text("prophet")
            found["text, guessing as it likes"] = lambda: self.text("auto")
        for rows in self.case.rows:
            found[f"batch of {rows}"] = lambda rows=rows: self.batch(rows)  # type: ignore[misc]
        if self.case.whole:
            rows = self.case.rows[-1]
            found |= {
                f"batch of {rows}, guessing": lambda: self.batch(rows, guess),
                "sampling options": self.options,
                "states that move": self.moved,
                "sessions": self.session,
                "scores": self.scores,
                "four threads": self.together,
            }
        return found


def compare(context: Context, case: Case, how: str, put: Put) -> None:
    """Load a model twice and run its checks."""
    path = case.find()
    begun = perf_counter()
    there = spikelet.load(path, dtype=case.dtype, device=context.device)
    loaded = perf_counter() - begun
    here = spikelet.load(path, dtype=case.dtype, device="cpu")  # type: ignore[arg-type]
    ids = np.random.default_rng(7).integers(0, here.vocab_size, case.tokens).tolist()
    for name, check in Pair(case, here, there, ids).checks().items():
        begun = perf_counter()
        with mode(how):
            said = check()
        row: dict[str, Any] = {"check": name, "passed": said is None}
        if said:
            row["difference"] = said
        put(**row, seconds=perf_counter() - begun)
    put(
        check="loading",
        passed=there.device != here.device or context.device == "cpu",
        seconds=loaded,
    )


def refused(context: Context, put: Put) -> None:
    """What cannot run says so, and leaves the process as it was."""
    path = ROOT / "tests" / "golden" / "spikegpt-tiny"
    given: list[dict[str, Any]] = [{"dtype": "q4", "device": context.device}, {"device": "cuda:99"}]
    for asked in given:
        said = error_of(lambda asked=asked: spikelet.load(path, **asked))  # type: ignore[misc]
        put(given=asked, passed=said is not None or context.device == "cpu", error=said)
    model = spikelet.load(path, device=context.device)
    put(given="afterwards", passed=len(model.generate([1], max_new_tokens=4).run().ids) == 4)


def error_of(work: Callable[[], object]) -> str | None:
    """Return what a call raises."""
    try:
        work()
    except spikelet.SpikeletError as error:
        return f"{type(error).__name__}: {error}"
    return None


def long(context: Context, put: Put) -> None:
    """A long text: barriers and races that show once in a thousand passes."""
    tokens = 8 if context.dry else 20000
    path = ROOT / "tests" / "golden" / "spikegpt-tiny" if context.dry else None
    case = Case("long", "auto", lambda: path, tokens)
    here = spikelet.load(path, device="cpu")
    for how in MODES:
        there = spikelet.load(path, device=context.device)
        with mode(how):
            said = Pair(case, here, there, list(range(40))).text("off")
        put(mode=how, tokens=tokens, passed=said is None, difference=said)


def units(context: Context) -> list[Unit]:
    """Return what this part does: as it is driven by default, then in the other ways."""
    found = [Unit("refused", lambda put: refused(context, put), 30)]
    for how in MODES:
        some = cases(context)
        if how != DEFAULT:
            some = [case for case in some if case.whole and case.dtype in ("f32", "f16", "q8")]
            some = some[: 1 if context.dry else None]
        found += [
            Unit(
                f"{case.name} {case.dtype}" + ("" if how == DEFAULT else f", {how}"),
                lambda put, case=case, how=how: compare(context, case, how, put),  # type: ignore[misc]
                40 if case.whole else 90,
                4 if case.whole else 25,
            )
            for case in some
        ]
    # Behind the small models, before those that take a CPU long.
    at = next((i for i, unit in enumerate(found) if unit.needs > 20), len(found))
    return [*found[:at], Unit("long text", lambda put: long(context, put), 60, 15), *found[at:]]
