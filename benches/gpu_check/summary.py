"""What the parts found, in Markdown: for the end of a run, and for the page of the benches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_check import card

Found = Mapping[str, Mapping[str, Any]]
PARTS = ("machine", "exact", "training", "sanitize", "limits", "speed", "speculation")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the parts' files that a folder has, by part."""
    files = {part: folder / f"gpu-{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def rows(found: Found, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows of a part, each with its unit."""
    for name, unit in found.get(part, {}).get("units", {}).items():
        for row in unit["rows"]:
            yield name, row


def wrong(found: Found) -> list[str]:
    """Say what is not as it should be: checks that failed, units that did."""
    made = []
    for part, data in found.items():
        if data.get("error"):
            made.append(f"{part}: {data['error'].splitlines()[-1]}")
        for name, unit in data["units"].items():
            if unit["state"] not in ("done", "left out"):
                made.append(f"{part}, {name}: {unit['state']}: {last_line(unit.get('error'))}")
            failed = (row for row in unit["rows"] if row.get("passed") is False)
            made += (f"{part}, {name}: {short(row)}" for row in failed)
    return made


def left_out(found: Found) -> list[str]:
    """Units for which there was no time."""
    return [
        f"{part}, {name}"
        for part, data in found.items()
        for name, unit in data["units"].items()
        if unit["state"] == "left out"
    ]


def last_line(text: str | None) -> str:
    """Return the line of an error that says it."""
    return (text or "").strip().splitlines()[-1][:300] if text else ""


def short(row: Mapping[str, Any]) -> str:
    """Say a row that failed."""
    kept = {key: value for key, value in row.items() if key not in ("passed", "seconds", "report")}
    return ", ".join(f"{key} {value}" for key, value in kept.items())[:300]


def figure(value: Mapping[str, float] | None, form: str = ".4g") -> str:
    """A median with its interval."""
    if not value:
        return "-"
    low, high = format(value["low"], form), format(value["high"], form)
    return f"{value['median']:{form}} ({low} to {high})"


def share(value: Mapping[str, float] | None) -> str:
    """A share in per cent."""
    return f"{value['median']:.0%}" if value else "-"


def table(head: tuple[str, ...], lines: list[tuple[object, ...]]) -> str:
    """A table in Markdown, or nothing without lines."""
    if not lines:
        return ""
    made = [head, tuple("---" for _ in head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in one)} |" for one in made)


def checks(found: Found) -> str:
    """How many checks of each part passed."""
    lines = []
    for part in ("machine", "exact", "training", "sanitize", "speed", "speculation"):
        judged = [row["passed"] for _, row in rows(found, part) if "passed" in row]
        if judged:
            units = found[part]["units"].values()
            done = sum(unit["state"] == "done" for unit in units)
            lines.append((part, f"{sum(judged)} of {len(judged)}", f"{done} of {len(units)}"))
    return table(("part", "checks passed", "units done"), lines)


def starts(found: Found) -> str:
    """Times until the first token of a fresh process."""
    lines: list[tuple[object, ...]] = [
        (row["model"], row["state"], *(f"{row[k]:.3g}" for k in ("import", "load", "first_token")))
        for name, row in rows(found, "machine")
        if name == "first token"
    ]
    return table(("model", "kernels", "import s", "load s", "first token s"), lines)


def limits(found: Found) -> str:
    """What the card gives."""
    given = [(row["what"], figure(row["value"])) for _, row in rows(found, "limits")]
    return table(("limit", "measured"), [*given])


def decoding(found: Found) -> str:
    """Tokens per second beside PyTorch."""
    lines: list[tuple[object, ...]] = []
    for _, row in rows(found, "speed"):
        if "engine" in row:
            other = row.get("against")
            beside = f"{figure(other, '.2f')} x {other['peer']}" if other else ""
            rate = figure(row["tokens_per_second"])
            lines.append(
                (row["model"], row["rows"], row["engine"], rate, share(row.get("share")), beside)
            )
    head = ("model", "rows", "engine", "tok/s of all", "of the limit", "against the best PyTorch")
    return table(head, lines)


def passes(found: Found) -> str:
    """Passes over several tokens."""
    lines: list[tuple[object, ...]] = [
        (row["model"], row["format"], row["tokens"], figure(row["milliseconds"], ".3g"),
         f"{row['cost']['median']:.2f} x", share(row.get("share")))
        for _, row in rows(found, "speed")
        if "milliseconds" in row
    ]  # fmt: skip
    return table(("model", "format", "tokens", "ms", "cost", "of the limit"), lines)


def loop(found: Found) -> str:
    """The same passes as the decode loop has them."""
    lines: list[tuple[object, ...]] = []
    for _, row in rows(found, "speed"):
        if "in_loop_milliseconds" in row:
            part = row["in_loop_share"]
            shown = "-" if part is None else f"{part:.0%}"
            spent = f"{row['in_loop_milliseconds']:.3g}"
            lines.append((row["model"], row["format"], row["tokens"], spent, shown))
    return table(("model", "format", "tokens", "ms", "of the limit"), lines)


def prompts(found: Found) -> str:
    """Reading a prompt."""
    lines: list[tuple[object, ...]] = [
        (row["model"], row["format"], row["prompt"], figure(row["tokens_per_second"]),
         share(row.get("share")))
        for _, row in rows(found, "speed")
        if "prompt" in row
    ]  # fmt: skip
    return table(("model", "format", "prompt", "tok/s", "of the limit"), lines)


def guesses(found: Found) -> str:
    """Speculative decoding."""
    lines: list[tuple[object, ...]] = []
    for _, row in rows(found, "speculation"):
        if "speedup" in row:
            forced = row["forced_acceptance"]
            kind = row["prompt_class"] if forced is None else f"accepted {forced:.0%}"
            way = f"{row['method']} {row['num_speculative_tokens']}"
            base = row["base_tokens_per_second"]["median"]
            rate = row["tokens_per_second"]["median"]
            lines.append(
                (row["model"], row["dtype"], row["batch_size"], kind, f"{row['temperature']:g}",
                 way, f"{base:.0f}", f"{rate:.0f}", figure(row["speedup"], ".2f"), row["text"])
            )  # fmt: skip
    head = ("model", "format", "rows", "text of", "T", "drafts", "base tok/s", "tok/s", "speed-up")
    return table((*head, "text"), lines)


def operators(found: Found) -> str:
    """Operators of training."""
    lines: list[tuple[object, ...]] = [
        (row["operator"], "x".join(map(str, row["size"])), row["dtype"],
         f"{1e3 * row['fused']:.3g}", f"{1e3 * row['naive']:.3g}",
         f"{row['gigabytes_per_second']:.0f}")
        for _, row in rows(found, "training")
        if "gigabytes_per_second" in row
    ]  # fmt: skip
    return table(("operator", "size", "type", "fused ms", "plain ms", "GB/s"), lines)


SECTIONS = {
    "Checks": checks,
    "What the card gives": limits,
    "Until the first token": starts,
    "Decoding": decoding,
    "A pass over several tokens, in the loop of decoding": loop,
    "The same as a call of forward": passes,
    "Reading a prompt": prompts,
    "Speculative decoding": guesses,
    "Operators of training": operators,
}


def render(found: Found, level: int = 2) -> str:
    """All of it. Nothing is left out silently."""
    if not found:
        return "No part of the GPU check has results.\n"
    marks = "#" * level
    machine = next(iter(found.values()))["machine"]
    parts = [f"{marks} NVIDIA GPU", f"{card.line(machine)}:" if machine else ""]
    for title, make in SECTIONS.items():
        text = make(found)
        if text:
            parts += [f"{marks}# {title}", text]
    bad, missing = wrong(found), left_out(found)
    if bad:
        parts += [f"{marks}# Wrong", "\n".join(f"- {one}" for one in bad)]
    if missing:
        parts.append(f"No time was left for: {'; '.join(missing)}.")
    return "\n\n".join(filter(None, parts)) + "\n"
