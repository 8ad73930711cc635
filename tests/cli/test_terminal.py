"""Output helpers: numbers for people, tables, progress on terminals and in logs."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import pytest

from spikelet.cli import options
from spikelet.cli.terminal import (
    Output,
    Progress,
    Stages,
    human_bytes,
    human_count,
    human_seconds,
    table,
)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (200 << 20, "200 MB"), (5 << 40, "5120 GB")],
)
def test_bytes(value: int, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (999, "999"), (1000, "1.0k"), (216_000_000, "216M")]
)
def test_counts(value: int, text: str) -> None:
    assert human_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0341, "34 ms"), (5.0, "5.0 s"), (95, "1m 35s"), (7260, "2h 01m")]
)
def test_seconds(value: float, text: str) -> None:
    assert human_seconds(value) == text


def test_table() -> None:
    rows: list[tuple[str, ...]] = [("name", "size"), ("a", "1000"), ("long name", "7")]
    assert table(rows, right=frozenset({1})) == [
        "name       size",
        "a          1000",
        "long name     7",
    ]


def test_colour_only_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert Output(io.StringIO()).paint("x", "red") == "x"
    assert Output(Screen()).paint("x", "red", "bold") == "\x1b[31;1mx\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert Output(Screen()).paint("x", "red") == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Output(Screen()).paint("x", "red") == "x"


def test_control_characters_are_shown_to_people_and_kept_for_programs() -> None:
    text = "a\x1b[2Jb\x07\r\n\tc\x9b\x7f"
    pipe, screen = io.StringIO(), Screen()
    Output(pipe).model_text(text)
    Output(screen).model_text(text)
    assert pipe.getvalue() == text
    assert screen.getvalue() == "a␛[2Jb␇␍\n\tc\ufffd␡"


def test_a_bar_grows_and_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(Progress, "BAR_INTERVAL", 0.0)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with Progress("reading", 200, unit=" tokens") as progress:
        for done in (0, 100, 200):
            progress.update(done)
    lines = screen.getvalue().split("\r\x1b[2K")
    assert [line.count("█") for line in lines] == [0, 0, 15, 30, 0]
    assert "50%  100 tokens of 200 tokens" in lines[2]
    assert lines[-1] == ""


def test_a_narrow_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(Progress, "BAR_INTERVAL", 0.0)
    monkeypatch.setenv("COLUMNS", "30")
    Progress("reading", 200).update(100)
    line = screen.getvalue().removeprefix("\r\x1b[2K")
    assert "█" not in line
    assert len(line) < 30


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(Progress, "LOG_INTERVAL", 0.0)
    with Progress("converting", 4096, unit="bytes") as progress:
        progress.update(1024, "slowly")
    assert log.getvalue() == "converting  25%  1.0 KB of 4.0 KB  slowly\n"


def test_stages_have_a_bar_each_and_lines_between(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    with Stages() as stages:
        stages.report("reading", 1, 10, unit=" tokens")
        stages.report("judging", 2, 10, "slowly")
        stages.say("done")
        stages.report("writing", 3, 10)
    pieces = screen.getvalue().split("\r\x1b[2K")
    assert [piece.partition(" ")[0] for piece in pieces] == [
        "", "reading", "", "judging", "done\n", "writing", "",
    ]  # fmt: skip
    assert "1 tokens of 10 tokens" in pieces[1]
    assert pieces[3].endswith("slowly")


def test_quiet_stages_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    with Stages(quiet=True) as stages:
        stages.report("reading", 1, 10)
        stages.say("done")
    assert screen.getvalue() == ""


def test_a_quick_piece_of_work_leaves_no_line_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Progress("converting", 10) as progress:
        progress.update(5)
    assert log.getvalue() == ""


@pytest.mark.parametrize(("limit", "shown"), [(0, True), (1 << 40, False)])
def test_a_long_load_shows_a_bar_on_a_terminal(
    golden: Path, monkeypatch: pytest.MonkeyPatch, limit: int, shown: bool
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(options, "BAR_FROM", limit)
    monkeypatch.setattr(options, "BAR_AFTER", 0.0)
    parser = argparse.ArgumentParser()
    options.add_model_options(parser)
    args = parser.parse_args(["--model", str(golden / "spikegpt-tiny")])
    options.load_model(args)
    assert ("loading" in screen.getvalue()) is shown
    assert not shown or screen.getvalue().endswith("\r\x1b[2K")


def test_a_load_leaves_no_line_in_a_log(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(Progress, "LOG_INTERVAL", 0.0)
    monkeypatch.setattr(options, "BAR_FROM", 0)
    monkeypatch.setattr(options, "BAR_AFTER", 0.0)
    parser = argparse.ArgumentParser()
    options.add_model_options(parser)
    options.load_model(parser.parse_args(["--model", str(golden / "spikegpt-tiny")]))
    assert log.getvalue() == ""
