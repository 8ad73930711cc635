"""`spikelet chat`: turns over one session, its commands, templates, and behaviour on a terminal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import spikelet
from spikelet.cli.conversation import PLAIN_TEMPLATE, Template
from spikelet.cli.terminal import UsageError

from .conftest import make_model
from .helpers import Cli, Terminal

SHORT = ["-n", "12", "--seed", "5"]


def reply(session: spikelet.Session, prompt: str, **options: object) -> str:
    text = session.generate(prompt, max_new_tokens=12, seed=5, **options).run().text  # type: ignore[arg-type]
    return text if text.endswith("\n") else text + "\n"


def test_a_story_goes_on_in_one_session(cli: Cli, model_folder: Path) -> None:
    result = cli("chat", "--model", model_folder, *SHORT, stdin=b"Once upon\na time\n")
    session = spikelet.load(model_folder).session()
    first = reply(session, "Once upon")
    glue = "" if first.rstrip("\n")[-1:].isspace() else " "
    assert result.code == 0
    assert result.out == first + reply(session, glue + "a time")


def test_a_template_makes_turns(cli: Cli, model_folder: Path) -> None:
    result = cli(
        "chat", "--model", model_folder, "--template", "plain", *SHORT, stdin=b"Hi\nYou?\n"
    )
    session = spikelet.load(model_folder).session()
    first = reply(session, "User: Hi\n\nAssistant:", stop=["\n\n"]).lstrip()
    second = reply(session, "\n\nUser: You?\n\nAssistant:", stop=["\n\n"]).lstrip()
    assert result.out == first + second


def test_the_models_own_template_and_stop_are_used(cli: Cli, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", chat_template="<q>{user}<a>{assistant}<e>\n", stop=["zzz"])
    result = cli("chat", "--model", folder, *SHORT, stdin=b"Hi\n")
    session = spikelet.load(folder).session()
    assert result.out == reply(session, "<q>Hi<a>", stop=["<e>", "zzz"]).lstrip()


def test_template_of_text() -> None:
    template = Template.parse(PLAIN_TEMPLATE)
    assert template.question("Hi") == "User: Hi\n\nAssistant:"
    assert template.stop == "\n\n"
    assert Template.parse("<u>{user}<a>{assistant}<end>\n").stop == "<end>"
    # A space before the reply is the reply's own first token in most vocabularies.
    assert Template.parse("Q: {user} A: {assistant}\n").question("x") == "Q: x A:"


@pytest.mark.parametrize("text", ["no marks", "{assistant}{user}", "{% for m in messages %}"])
def test_templates_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="template"):
        Template.parse(text)


def test_undo_gives_the_past_back(cli: Cli, model_folder: Path) -> None:
    words: list[str | Path] = ["chat", "--model", model_folder, *SHORT]
    once = cli(*words, stdin=b"One\nTwo\n").out
    again = cli(*words, stdin=b"One\nThree\n/undo\nTwo\n").out
    assert again.startswith(cli(*words, stdin=b"One\n").out)
    assert again.endswith(once.removeprefix(cli(*words, stdin=b"One\n").out))


def test_retry_answers_the_same_line_again(cli: Cli, model_folder: Path) -> None:
    words: list[str | Path] = ["chat", "--model", model_folder, *SHORT]
    once = cli(*words, stdin=b"One\n").out
    assert cli(*words, stdin=b"One\n/retry\n").out == once * 2


def test_reset_forgets(cli: Cli, model_folder: Path) -> None:
    words: list[str | Path] = ["chat", "--model", model_folder, *SHORT]
    once = cli(*words, stdin=b"One\n").out
    assert cli(*words, stdin=b"One\n/reset\nOne\n").out == once * 2


@pytest.mark.parametrize("how", ["command", "option"])
def test_a_saved_session_goes_on_elsewhere(
    cli: Cli, model_folder: Path, tmp_path: Path, how: str
) -> None:
    words: list[str | Path] = ["chat", "--template", "plain", "--model", model_folder, *SHORT]
    whole = cli(*words, stdin=b"One\nTwo\n").out
    file = tmp_path / "past.safetensors"
    first = cli(*words, stdin=f"One\n/save {file}\n".encode()).out
    if how == "command":
        second = cli(*words, stdin=f"/load {file}\nTwo\n".encode()).out
    else:
        second = cli(*words, "--load", file, stdin=b"Two\n").out
    assert first + second == whole


def test_a_backslash_joins_lines(cli: Cli, model_folder: Path) -> None:
    result = cli("chat", "--model", model_folder, *SHORT, stdin=b"One\\\nTwo\n")
    assert result.out == reply(spikelet.load(model_folder).session(), "One\nTwo")


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("/frobnicate", "unknown command /frobnicate"),
        ("/save", "needs a file name"),
        ("/load nowhere.safetensors", "nowhere.safetensors"),
        ("/undo", "nothing to take back"),
    ],
)
def test_a_script_stops_at_the_first_error(
    cli: Cli, model_folder: Path, line: str, needed: str
) -> None:
    result = cli("chat", "--model", model_folder, *SHORT, stdin=f"{line}\nOnce\n".encode())
    assert result.code in (1, 2)
    assert result.out == ""
    assert needed in result.err
    assert result.err.count("\n") == 1


def test_on_a_terminal(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "past.safetensors"
    words: list[str | Path] = ["chat", "--model", model_folder, "-n", "1000000000", "--ignore-eos"]
    terminal = Terminal([*words, "--template", "plain"], columns=120)
    terminal.wait_for("What you type is answered. /help lists commands.")
    terminal.wait_for("> ")
    terminal.press("/nonsense\n")
    terminal.wait_for("unknown command /nonsense")
    terminal.wait_for("> ")
    terminal.press("Hello\n")
    terminal.wait_for("Hello\n")
    terminal.press("\x03")  # stops the reply, not the conversation
    terminal.wait_for("> ")
    terminal.press(f"/save {file}\n")
    terminal.wait_for("Saved ")
    terminal.wait_for("> ")
    terminal.press("\x04")  # Ctrl-D
    assert terminal.finish() == 0
    assert "Traceback" not in terminal.shown
    assert file.is_file()


def test_a_story_model_says_what_it_is(model_folder: Path) -> None:
    terminal = Terminal(["chat", "--model", model_folder], columns=200)
    terminal.wait_for("trained to continue text, not to answer")
    terminal.wait_for("> ")
    # Python can miss a signal in the instant between showing the prompt and waiting for a key.
    deadline = time.monotonic() + 20
    while terminal.process.poll() is None and time.monotonic() < deadline:
        terminal.press("\x03")
        time.sleep(0.2)
    assert terminal.finish() == 130
    assert "Traceback" not in terminal.shown
