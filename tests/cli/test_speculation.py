"""Options of speculation, accepted drafts in the text, and what `--stats` tells of them."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import spikelet
from spikelet.cli.generate import TokenWriter
from spikelet.cli.options import add_speculation_options, speculation_arguments
from spikelet.cli.stats import describe_drafts
from spikelet.cli.terminal import Output, UsageError

from .helpers import Cli, Terminal


def arguments(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_speculation_options(parser)
    return speculation_arguments(
        parser.parse_args(words, argparse.Namespace(threads=1, device=None))
    )


def test_only_what_is_given_reaches_the_engine() -> None:
    assert arguments() == {}
    assert arguments("--speculative", "off") == {"speculative": "off"}
    assert arguments("--speculative", "auto") == {"speculative": "auto"}
    config = arguments("--speculative", "ngram", "--num-speculative-tokens", "3")["speculative"]
    assert (config.method, config.num_speculative_tokens) == ("ngram", 3)
    config = arguments("--verify", "block", "--num-speculative-tokens", "auto")["speculative"]
    assert (config.method, config.verify) == ("auto", "block")


def test_a_draft_model_is_loaded(model_folder: Path) -> None:
    config = arguments("--draft-model", str(model_folder))["speculative"]
    assert config.method == "draft_model"
    assert config.draft_model.path == model_folder


def test_wrong_words_are_named_as_they_were_typed() -> None:
    with pytest.raises(UsageError, match=r"--speculative.*eagle"):
        arguments("--speculative", "eagle")
    with pytest.raises(UsageError, match="does not draft"):
        arguments("--speculative", "off", "--verify", "block")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


TOKENS = [("One", False), (" fox", True), ("", True), (" ran", True), (".", False), (" It", True)]


def written(stream: io.StringIO, *, show_drafts: bool) -> str:
    writer = TokenWriter(Output(stream), show_drafts=show_drafts)
    for text, drafted in TOKENS:
        writer.write(spikelet.Token(text, 1, -1.0, (), drafted))
    writer.close()
    return stream.getvalue()


def test_accepted_drafts_are_marked_in_plain_text() -> None:
    assert written(io.StringIO(), show_drafts=True) == "One⟦ fox ran⟧.⟦ It⟧"
    assert written(io.StringIO(), show_drafts=False) == "One fox ran. It"


def test_accepted_drafts_are_green_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    green = "\x1b[32m{}\x1b[0m".format
    shown = "One" + green(" fox") + green(" ran") + "." + green(" It")
    assert written(Screen(), show_drafts=True) == shown
    assert written(Screen(), show_drafts=False) == "One fox ran. It"
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Screen(), show_drafts=True) == "One⟦ fox ran⟧.⟦ It⟧"


def stats(**changes: Any) -> spikelet.GenerationStats:
    values = {
        "num_drafts": 4, "num_draft_tokens": 10, "acceptance_rate": 0.6,
        "mean_acceptance_length": 2.5,
        "by_source": {
            "ngram": {"num_draft_tokens": 6, "num_accepted_tokens": 5},
            "prophet": {"num_draft_tokens": 4, "num_accepted_tokens": 1},
            "table": {"num_draft_tokens": 0, "num_accepted_tokens": 0},
        },
        "chose_base": 0.25, "time_draft": 0.001, "time_verify": 0.02, "time_accept": 0.0001,
        "predicted_seconds": 1.0, "predicted_base_seconds": 1.8,
    }  # fmt: skip
    return cast(spikelet.GenerationStats, SimpleNamespace(**{**values, **changes}))


def test_a_line_on_drafts() -> None:
    assert describe_drafts(stats()) == (
        "4 drafts of 2.5 tokens, 60% accepted, 2.50 tokens a pass; ngram 5/6, prophet 1/4; "
        "25% of passes without; draft 1 ms, verify 20 ms, accept 0 ms; "
        "predicted 1.8 x base decoding"
    )
    short = describe_drafts(stats(chose_base=0.0, predicted_seconds=0.0))
    assert "without" not in short
    assert "predicted" not in short


def words(folder: Path, *more: str) -> list[str | Path]:
    # The bias makes it write "aaaa..", which drafts from the text guess right.
    return ["generate", "abaa", "-n", "40", "--seed", "3", "--logit-bias", "97=1000",
            "--model", folder, *more]  # fmt: skip


def test_the_text_is_that_of_base_decoding(cli: Cli, model_folder: Path) -> None:
    base = cli(*words(model_folder, "--speculative", "off", "--stats"))
    assert "drafts of" not in base.err
    for method in ("ngram", "auto"):
        drafted = cli(*words(model_folder, "--speculative", method))
        assert drafted.code == 0
        assert drafted.out == base.out


def test_drafts_of_a_real_run_are_shown(cli: Cli, model_folder: Path) -> None:
    given = ("--speculative", "ngram", "--num-speculative-tokens", "3")
    found = json.loads(cli(*words(model_folder, "--json", *given)).out)
    accepted = [token["drafted"] for token in found["tokens"]]
    assert found["stats"]["num_accepted_tokens"] == sum(accepted) > 0
    assert found["stats"]["by_source"]["ngram"]["num_accepted_tokens"] == sum(accepted)
    shown = cli(*words(model_folder, "--show-drafts", "--stats", *given))
    assert shown.out.count("⟦") == shown.out.count("⟧") > 0
    assert shown.out.replace("⟦", "").replace("⟧", "") == cli(*words(model_folder, *given)).out
    assert "ngram" in shown.err
    refused = cli(*words(model_folder, "--json", "--show-drafts"))
    assert refused.code == 2


def test_drafts_on_a_real_terminal(model_folder: Path) -> None:
    given = ("--speculative", "ngram", "--num-speculative-tokens", "3", "--show-drafts")
    terminal = Terminal(words(model_folder, *given))
    assert terminal.finish() == 0
    assert "\x1b[32m" in terminal.shown
    assert "⟦" not in terminal.shown


def test_chat_speculates(cli: Cli, model_folder: Path) -> None:
    given: list[str | Path] = ["chat", "--model", model_folder, "-n", "60"]
    given += ["--logit-bias", "97=1000"]
    base = cli(*given, "--speculative", "off", stdin=b"abaa\n")
    drafted = cli(*given, "--speculative", "ngram", "--stats", stdin=b"abaa\n")
    assert drafted.out == base.out
    assert "drafts of" in drafted.err
