"""What a benchmark found: rows, their table, JSON and CSV, and whether they pass."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spikelet.bench.figures import Figure, rounded
from spikelet.bench.machine import describe, describe_given

LEAST_SPEEDUP = 0.98
"""`check` wants the lower end of every speed-up's interval to be at least this."""


@dataclass(frozen=True)
class Row:
    """One model, one class of prompts, one temperature, one way to speculate."""

    model: str
    """Its folder's name."""
    prompt_class: str
    temperature: float
    method: str
    num_speculative_tokens: int | str
    verify: str
    forced_acceptance: float | None
    batch_size: int
    dtype: str
    threads: int
    prompts: int
    tokens: int
    """Of every text."""
    base_tokens_per_second: Figure
    """Of all rows together, as is the next."""
    tokens_per_second: Figure
    speedup: Figure
    """Median and interval of the ratios of turns, which is not quite the ratio of the medians."""
    predicted_speedup: float | None
    """What the engine expected from costs and acceptance."""
    mean_draft_length: float | None
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    """Tokens that a round with a draft gave, the model's own included."""
    acceptance_rate_per_position: list[float]
    one_hot_ceiling: list[float]
    """What a draft of always the likeliest token could reach, by position."""
    accepted_histogram: list[int]
    by_source: dict[str, dict[str, int]]
    draft_ms: float
    """Of a round; so are the next three."""
    verify_ms: float
    accept_ms: float
    other_ms: float
    base_ms: float
    """A step of base decoding."""
    rounds: int
    """Of a turn."""
    chose_base: float | None
    """Share of rounds without a draft."""
    text: str
    """`"identical"` to base decoding's, or `"DIFFERS"`; `"distribution"` where only that is
    promised; `"forced"` where it is not the model's."""
    sha256: list[str]
    """Of the ids of all prompts; several if turns differed."""
    base_sha256: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Row:
        """The row that `as_dict` wrote."""
        figures = ("base_tokens_per_second", "tokens_per_second", "speedup")
        return cls(**{**given, **{name: Figure(**given[name]) for name in figures}})


@dataclass(frozen=True)
class Column:
    """Of the table."""

    name: str
    show: Callable[[Row], str]
    always: bool = True
    """Otherwise only where its rows differ."""


def _optional(form: str, value: float | None) -> str:
    return "-" if value is None else format(value, form)


def _identical(row: Row) -> str:
    if row.text == "identical":
        return f"yes {row.sha256[0][:8]}"
    return {"DIFFERS": "NO", "forced": "not the model's text"}.get(row.text, row.text)


COLUMNS = (
    Column("model", lambda row: row.model, always=False),
    Column("class", lambda row: row.prompt_class),
    Column("T", lambda row: f"{row.temperature:g}"),
    Column("method", lambda row: row.method),
    Column("tokens", lambda row: str(row.num_speculative_tokens), always=False),
    Column("rows", lambda row: str(row.batch_size), always=False),
    Column("dtype", lambda row: row.dtype, always=False),
    Column("threads", lambda row: str(row.threads), always=False),
    Column("forced", lambda row: _optional("g", row.forced_acceptance), always=False),
    Column("base tok/s", lambda row: f"{row.base_tokens_per_second.median:.0f}"),
    Column("spec tok/s", lambda row: f"{row.tokens_per_second.median:.0f}"),
    Column(
        "speed-up",
        lambda row: f"{row.speedup.median:.2f} [{row.speedup.low:.2f} {row.speedup.high:.2f}]",
    ),
    Column("predicted", lambda row: _optional(".2f", row.predicted_speedup)),
    Column("draft", lambda row: _optional(".1f", row.mean_draft_length)),
    Column("accepted", lambda row: _optional(".0%", row.acceptance_rate)),
    Column("length", lambda row: _optional(".2f", row.mean_acceptance_length)),
    Column("draft ms", lambda row: f"{row.draft_ms:.3f}"),
    Column("verify ms", lambda row: f"{row.verify_ms:.3f}"),
    Column("accept ms", lambda row: f"{row.accept_ms:.3f}"),
    Column("other ms", lambda row: f"{row.other_ms:.3f}"),
    Column("base ms", lambda row: f"{row.base_ms:.3f}"),
    Column("chose base", lambda row: _optional(".0%", row.chose_base)),
    Column("identical", _identical),
)


@dataclass
class Report:
    """All rows, and what they have to be read with."""

    machine: dict[str, Any]
    given: dict[int, dict[str, float]]
    """What the machine gives to so many threads: see `machine.given`."""
    costs: list[dict[str, Any]]
    """Of each model, dtype and number of threads: seconds of a `pass` by the tokens in it, of its
    `roofline`, and what the `engine` takes it for; of a further drafted token by source (`draft`).
    """
    rows: list[Row] = field(default_factory=list)

    def cells(self) -> list[tuple[str, ...]]:
        """The table: its head, then its rows. Axes that have one value only are left out."""
        shown = [
            column
            for column in COLUMNS
            if column.always or len({column.show(row) for row in self.rows}) > 1
        ]
        head = tuple(column.name for column in shown)
        return [head, *(tuple(column.show(row) for column in shown) for row in self.rows)]

    def table(self) -> str:
        """The table in Markdown, below lines on machine and promises."""
        lines = [f"| {' | '.join(cells)} |" for cells in self.cells()]
        lines.insert(1, f"|{'---|' * len(self.cells()[0])}")
        return "\n".join([*self.notes(), "", *lines])

    def notes(self) -> list[str]:
        """What stands above the table."""
        lines = [describe(self.machine)]
        lines += [describe_given(found, threads) for threads, found in self.given.items()]
        kinds = {row.text for row in self.rows}
        rules = sorted({row.verify for row in self.rows if row.text == "distribution"})
        if "distribution" in kinds:
            lines.append(
                f"verify {' and '.join(rules)}: the text is drawn from the same distribution as "
                "base decoding's and is not the same text; no hash can show that (tests of the "
                "engine do)"
            )
        if "forced" in kinds:
            lines.append(
                "forced acceptance: not the model's text; what the machine does at such a rate"
            )
        return lines

    def failures(self, least: float = LEAST_SPEEDUP) -> list[str]:
        """A line for each row that breaks a promise: other text, or slower than base decoding."""
        found = []
        for row in self.rows:
            name = f"{row.model}: {row.prompt_class}, temperature {row.temperature:g}, {row.method}"
            name += f", {row.num_speculative_tokens} tokens, {row.batch_size} rows, {row.dtype}"
            if row.text == "DIFFERS":
                found.append(f"{name}: the text differs from base decoding's")
            if row.speedup.low < least:
                found.append(
                    f"{name}: speed-up {row.speedup.median:.3f}, and its interval begins at "
                    f"{row.speedup.low:.3f}, below {least:g}"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with four digits."""
        found: dict[str, Any] = rounded(
            {
                "machine": self.machine,
                "given": self.given,
                "costs": self.costs,
                "rows": [row.as_dict() for row in self.rows],
            }
        )
        return found

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report from the JSON of `as_dict`."""
        found = json.loads(file.read_text(encoding="utf-8"))
        costs = [
            {**entry, **{name: _by_tokens(entry[name]) for name in ("pass", "roofline", "engine")}}
            for entry in found["costs"]
        ]
        given = {int(threads): values for threads, values in found["given"].items()}
        return cls(found["machine"], given, costs, [Row.of(row) for row in found["rows"]])

    def csv(self) -> str:
        """A line for each row; figures take three columns, lists are JSON."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for item in fields(Row) for name in _names(item.name, item.type)])
        for row in self.rows:
            writer.writerow([c for item in fields(Row) for c in _values(getattr(row, item.name))])
        return out.getvalue()


def joined(reports: Sequence[Report]) -> Report:
    """Several reports of one machine as one."""
    first = reports[0]
    return Report(
        first.machine,
        {threads: found for report in reports for threads, found in report.given.items()},
        [entry for report in reports for entry in report.costs],
        [row for report in reports for row in report.rows],
    )


def _by_tokens(values: dict[str, float]) -> dict[int, float]:
    """JSON has made text of the numbers."""
    return {int(tokens): seconds for tokens, seconds in values.items()}


def _names(name: str, kind: object) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"] if kind == "Figure" else [name]


def _values(value: Any) -> list[Any]:
    if isinstance(value, Figure):
        return [rounded(part) for part in (value.median, value.low, value.high)]
    if isinstance(value, list | dict):
        return [json.dumps(rounded(value))]
    return [rounded(value)]
