"""What a generation did and how fast, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spikelet.cli.terminal import human_seconds, stderr

if TYPE_CHECKING:
    from spikelet import Completion, Generation, GenerationStats, Model

COUNTS = ("num_prompt_tokens", "num_generated_tokens", "prefill_seconds", "decode_seconds")
SPECULATION = (
    "num_rounds",
    "num_drafts",
    "num_draft_tokens",
    "num_accepted_tokens",
    "acceptance_rate",
    "acceptance_rate_per_position",
    "mean_acceptance_length",
    "by_source",
    "time_draft",
    "time_verify",
    "time_accept",
    "chose_base",
)


def stats_dict(stats: GenerationStats) -> dict[str, Any]:
    """What --json shows; of speculation only where there was a pass that could have had a draft."""
    names = COUNTS + (SPECULATION if stats.num_rounds else ())
    return {name: getattr(stats, name) for name in names}


def show_stats(
    model: Model,
    generation: Generation | Completion,
    first_token: float | None,
    *,
    end: str | None = None,
) -> None:
    """Lines on stderr: what ran, how fast, and what drafts came to.

    `end` is a better word for why it ended.
    """
    err = stderr()
    stats = generation.stats
    parts = [
        f"prompt {stats.num_prompt_tokens} tokens, {stats.prefill_tokens_per_second:.0f}/s",
        f"text {stats.num_generated_tokens} tokens, {stats.decode_tokens_per_second:.0f}/s",
    ]
    if first_token is not None:
        parts.append(f"first after {human_seconds(first_token)}")
    parts.append(f"end: {end or generation.finish_reason or 'cancelled'}")
    parts.append(f"seed {generation.seed}")
    threads = f"{model.threads} thread{'s' if model.threads != 1 else ''}"
    machine = f"{model.config.model_type} {model.dtype} on {model.device} ({model.isa}, {threads})"
    err.line(err.paint(machine, "dim"))
    err.line(err.paint("; ".join(parts), "dim"))
    if stats.num_drafts:
        err.line(err.paint(describe_drafts(stats), "dim"))


def describe_drafts(stats: GenerationStats) -> str:
    """What drafts came to, in a line."""
    lengths = stats.num_draft_tokens / stats.num_drafts
    lead = (
        f"{stats.num_drafts} drafts of {lengths:.1f} tokens, {stats.acceptance_rate:.0%} accepted"
    )
    parts = [f"{lead}, {stats.mean_acceptance_length:.2f} tokens a pass"]
    sources = [
        f"{name} {counts['num_accepted_tokens']}/{counts['num_draft_tokens']}"
        for name, counts in stats.by_source.items()
        if counts["num_draft_tokens"]
    ]
    parts.append(", ".join(sources))
    if stats.chose_base:
        parts.append(f"{stats.chose_base:.0%} of passes without")
    times = (
        ("draft", stats.time_draft),
        ("verify", stats.time_verify),
        ("accept", stats.time_accept),
    )
    parts.append(", ".join(f"{name} {human_seconds(seconds)}" for name, seconds in times))
    if stats.predicted_seconds:
        speedup = stats.predicted_base_seconds / stats.predicted_seconds
        parts.append(f"predicted {speedup:.1f} x base decoding")
    return "; ".join(parts)
