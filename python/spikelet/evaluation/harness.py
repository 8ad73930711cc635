"""The three questions that lm-evaluation-harness asks a model, answered by the engine.

This is `spikelet.evaluation.lm_eval` without the harness: it needs nothing but requests that have
`args`. A request's score does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from spikelet._models import load
from spikelet._spikelet import Model, default_options
from spikelet.errors import OptionError
from spikelet.evaluation.scoring import Pair, Progress, encode_pair, prefix_id, score_pairs

if TYPE_CHECKING:
    from os import PathLike

MAX_NEW_TOKENS = 256  # the harness's own default
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Instance(Protocol):
    """A request of the harness."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked: texts, and options for `generate_until`."""


class HarnessAdapter:
    """Answers requests; see `SpikeletLM` for the arguments."""

    def __init__(
        self,
        path: str | PathLike[str] | Model | None = None,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise OptionError(
                f"option `max_length`: needs a number of at least 1, not {max_length}"
            )
        if isinstance(path, Model):
            self.model = path
        else:
            # The harness's command says "cuda:0" where nobody has asked for any device.
            chosen = "auto" if device is None or device == "cuda:0" else device
            options: dict[str, Any] = {"dtype": dtype, "device": chosen}
            self.model = load(path, threads=threads, **options)
        self.max_length = max_length
        # The harness also says "auto", and how far that may go: the engine's own choice then.
        digits = str(batch_size)
        self.batch_size = int(digits) if digits.isdigit() else max_batch_size
        self._seed = seed

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding writes it."""
        pairs = [self._cut(*encode_pair(self.model, *request.args)) for request in requests]
        scored = score_pairs(self.model, pairs, greedy=True, progress=self._bar("loglikelihood"))
        answers = [(one.log_prob, bool(one.greedy)) for one in scored]
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log probability of each whole text after the token that begins a text."""
        windows = [self._windows(request.args[0]) for request in requests]
        pairs = [pair for parts in windows for pair in parts]
        scored = iter(score_pairs(self.model, pairs, progress=self._bar("loglikelihood_rolling")))
        answers = [sum((next(scored).log_prob for _ in parts), 0.0) for parts in windows]
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Text after each context up to a stop string; greedy unless the request samples."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        answers = [""] * len(requests)
        bar = self._bar("generate_until")
        done = 0
        for indices in groups.values():
            options = self._options(requests[indices[0]].args[1])
            prompts = [requests[index].args[0] for index in indices]
            texts = self.model.generate_batch(prompts, batch_size=self.batch_size, **options)
            for index, completion in zip(indices, texts, strict=True):
                answers[index] = completion.text
            done += len(indices)
            if bar is not None:
                bar(done, len(requests))
        self._remember("generate_until", requests, answers)
        return answers

    def _cut(self, context: tuple[int, ...], continuation: tuple[int, ...]) -> Pair:
        """A pair as a model of `max_length` tokens sees it: the context's beginning is lost."""
        if self.max_length is None:
            return context, continuation
        room = self.max_length + 1 - len(continuation)  # the last token is never read
        if room < 1:
            found = f"a continuation of {len(continuation)} tokens"
            raise OptionError(f"option `max_length`: {self.max_length} is too short for {found}")
        return context[-room:], continuation

    def _windows(self, text: str) -> list[Pair]:
        """A text as one stream; with a `max_length` in windows, each token predicted once.

        Every window has that many tokens to read. Only the last one, which has less to predict,
        reads some that another has read.
        """
        ids = tuple(self.model.tokenizer.encode(text))
        prefix = prefix_id(self.model)
        start, ids = ((prefix,), ids) if prefix is not None else (ids[:1], ids[1:])
        if not ids:
            return []
        length = self.max_length or len(ids)
        windows = [(start, ids[:length])]
        for at in range(length, len(ids), length):
            part = ids[at : at + length]
            windows.append((ids[at + len(part) - length - 1 : at], part))
        return windows

    def _options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The harness's words for options as the engine's. Nothing comes from the model's files."""
        given = {name: value for name, value in asked.items() if value is not None}
        until = given.pop("until", [])
        lengths = [given.pop(name) for name in _LENGTH_NAMES if name in given]
        sample = given.pop("do_sample", None)
        temperature = float(given.pop("temperature", 0.0 if sample is None else 1.0))
        options = {
            **default_options(),
            "max_new_tokens": int(lengths[0]) if lengths else MAX_NEW_TOKENS,
            "temperature": 0.0 if sample is False else temperature,
            "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
            "seed": self._seed,
        }
        options.pop("row", None)
        for name, value in given.items():
            if name not in options:
                known = ", ".join(("until", "do_sample", *options))
                raise OptionError(f"option `{name}` of generate_until: there are {known}")
            options[name] = value
        return options

    def _remember(self, kind: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        """Into the harness's cache, where there is one."""
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            for request, answer in zip(requests, answers, strict=True):
                hook.add_partial(kind, request.args, answer)

    def _bar(self, label: str) -> Progress | None:
        """Where to tell how far it is; nowhere without the harness."""
        del label
        return None
