"""`spikelet generate`: prompts, pipes, terminals, interruptions."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import spikelet
from spikelet.cli import generate

from .conftest import make_model
from .helpers import Cli, Terminal, start

FOREVER = "1000000000"


def test_writes_what_the_package_writes(cli: Cli, model_folder: Path) -> None:
    result = cli("generate", "Once", "-n", "50", "--seed", "7", "--model", model_folder)
    model = spikelet.load(model_folder)
    expected = model.generate("Once", max_new_tokens=50, seed=7).run().text
    assert result.code == 0
    assert result.err == ""
    assert result.out == expected + ("" if expected.endswith("\n") else "\n")


def test_sampling_options_reach_the_engine(cli: Cli, model_folder: Path) -> None:
    words = [
        "--temperature",
        "0.7",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--typical-p",
        "0.95",
        "--preset",
        "rwkv",
        "--repetition-penalty",
        "1.1",
        "--presence-penalty",
        "0.3",
        "--frequency-penalty",
        "0.2",
        "--penalty-decay",
        "0.99",
        "--logit-bias",
        "101=-inf",
        "--logit-bias",
        "32=1.5",
        "--stop-id",
        "3",
    ]
    generation = spikelet.load(model_folder).generate(
        "Once",
        max_new_tokens=60,
        seed=3,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.95,
        preset="rwkv",
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        penalty_decay=0.99,
        logit_bias={101: float("-inf"), 32: 1.5},
        stop_ids=[3],
    )
    expected = generation.run()
    result = cli(
        "generate", "Once", "-n", "60", "--seed", "3", *words, "--json", "--model", model_folder
    )
    found = json.loads(result.out)
    assert [token["id"] for token in found["tokens"]] == expected.ids
    assert found["text"] == expected.text


def test_stop_text_ends_and_is_left_out(cli: Cli, model_folder: Path) -> None:
    words = ["generate", "Once", "-n", "80", "--seed", "1", "--json", "--model", str(model_folder)]
    text = json.loads(cli(*words).out)["text"]
    stop = next(piece for piece in (text[i : i + 2] for i in range(20, 60)) if piece.isprintable())
    found = json.loads(cli(*words, "--stop", "never there", "--stop", stop).out)
    assert found["finish_reason"] == "stop_string"
    assert found["text"] == text[: text.index(stop)]


def test_escapes_in_stop() -> None:
    from spikelet.cli.options import unescape

    assert unescape(r"\n\n") == "\n\n"
    assert unescape(r"a\tb\\n") == "a\tb\\n"


@pytest.mark.parametrize("source", ["argument", "file", "pipe", "dash"])
def test_the_prompt_may_come_from_anywhere(
    cli: Cli, model_folder: Path, tmp_path: Path, source: str
) -> None:
    prompt = "Es war einmal ein Bär"
    file = tmp_path / "prompt.txt"
    file.write_text(prompt + "\n", encoding="utf-8")
    words: dict[str, list[str]] = {
        "argument": [prompt],
        "file": ["--file", str(file)],
        "pipe": [],
        "dash": ["-"],
    }
    stdin = file.read_bytes() if source in ("pipe", "dash") else b""
    result = cli(
        "generate", *words[source], "-n", "3", "--json", "--model", model_folder, stdin=stdin
    )
    assert json.loads(result.out)["prompt"] == prompt


def test_a_prompt_cannot_come_twice(cli: Cli, tmp_path: Path) -> None:
    result = cli("generate", "text", "--file", tmp_path / "x")
    assert result.code == 2
    assert "not both" in result.err


def test_unreadable_prompts(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    missing = cli("generate", "--file", tmp_path / "missing.txt", "--model", model_folder)
    assert missing.code == 1
    assert "missing.txt: No such file or directory" in missing.err
    folder = cli("generate", "--file", tmp_path, "--model", model_folder)
    assert folder.code == 1
    assert "Is a directory" in folder.err
    result = cli("generate", "--model", model_folder, stdin=b"abc\xff\xfe")
    assert result.code == 2
    assert result.err == "spikelet: error: standard input: not UTF-8 at byte 3\n"


def test_an_argument_that_is_no_text(cli: Cli, model_folder: Path) -> None:
    result = cli("generate", "abc\udcff", "--model", model_folder)
    assert result.code == 2
    assert "not valid UTF-8" in result.err


def test_an_empty_prompt_is_refused_by_a_model_without_a_first_token(
    cli: Cli, model_folder: Path
) -> None:
    result = cli("generate", "", "--model", model_folder)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.err.startswith("spikelet: error: the prompt: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--top-p", "7"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--max-new-tokens", "-5"),
        ("--seed", "-1"),
        ("--preset", "none"),
        ("--dtype", "f64"),
        ("--device", "toaster"),
        ("--threads", "0"),
        ("--logit-bias", "999=1"),
        ("--logit-bias", "x"),
        ("--stop", ""),
        ("--num", "0"),
        ("--logprobs", "3"),
    ],
)
def test_impossible_values_are_one_line_and_code_2(
    cli: Cli, model_folder: Path, option: str, value: str
) -> None:
    result = cli("generate", "Once", option, value, "--model", model_folder)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith("spikelet: error: ")
    assert option in result.err or value.partition("=")[0] in result.err


def test_json_has_ids_and_log_probabilities(cli: Cli, model_folder: Path) -> None:
    result = cli(
        "generate",
        "Once",
        "-n",
        "5",
        "--json",
        "--logprobs",
        "3",
        "--seed",
        "2",
        "--model",
        model_folder,
    )
    found = json.loads(result.out)
    assert found["finish_reason"] == "length"
    assert found["seed"] == 2
    assert found["stats"]["num_prompt_tokens"] == 4
    assert len(found["tokens"]) == 5
    for token in found["tokens"]:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] >= token["logprob"]


def test_several_texts(cli: Cli, model_folder: Path) -> None:
    words = [
        "generate",
        "Once",
        "-n",
        "8",
        "--num",
        "3",
        "--seed",
        "4",
        "--model",
        str(model_folder),
    ]
    lines = [json.loads(line) for line in cli(*words, "--json").out.splitlines()]
    model = spikelet.load(model_folder)
    expected = model.generate_batch(["Once"] * 3, max_new_tokens=8, seed=4)
    assert [line["text"] for line in lines] == [completion.text for completion in expected]
    plain = cli(*words)
    assert "--- 3 of 3 ---" in plain.out
    assert "\x1b[1m" not in plain.out


def test_stats_go_to_stderr(cli: Cli, model_folder: Path) -> None:
    words = ["generate", "Once", "-n", "4", "--seed", "9", "--model", str(model_folder)]
    plain, stats = cli(*words), cli(*words, "--stats")
    assert stats.out == plain.out
    for part in ("prompt 4 tokens", "text 4 tokens", "first after", "end: length", "seed 9", "f32"):
        assert part in stats.err


def test_settings_of_the_model_hold_until_overruled(cli: Cli, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "short", max_new_tokens=3)
    count = len(json.loads(cli("generate", "x", "--json", "--model", folder).out)["tokens"])
    assert count == 3
    result = cli("generate", "x", "--json", "-n", "5", "--model", folder)
    assert len(json.loads(result.out)["tokens"]) == 5


def test_ctrl_c_ends_cleanly(model_folder: Path) -> None:
    process = start(
        "generate", "Once", "-n", FOREVER, "--ignore-eos", "--stats", "--model", model_folder
    )
    assert process.stdout is not None
    begin = process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (begin + rest).endswith(b"\n")
    assert b"Traceback" not in err
    assert b"end: cancelled" in err


def test_a_token_on_its_way_when_ctrl_c_comes_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted:
        """Has made "a" and a newline; Ctrl-C comes before the second reaches the loop."""

        text = "a\n"

        def __iter__(self) -> Iterator[spikelet.Token]:
            yield spikelet.Token("a", 1, -0.5)
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    model = SimpleNamespace(generate=lambda _prompt: Interrupted())
    args = argparse.Namespace(echo=False, stats=False, show_drafts=False)
    with pytest.raises(KeyboardInterrupt):
        generate._stream(model, "Once", {}, args)
    assert capsys.readouterr().out == "a\n"


@pytest.mark.parametrize("extra", [["--num", "3"], ["--json"]])
def test_ctrl_c_while_nothing_is_streamed(model_folder: Path, extra: list[str]) -> None:
    words = ["generate", "Once", "-n", FOREVER, "--ignore-eos", *extra]
    process = start(*words, "--model", model_folder)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)  # long enough to be at work
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""
    assert out == b""


def test_a_closed_pipe_ends_quietly(model_folder: Path) -> None:
    process = start("generate", "Once", "-n", FOREVER, "--ignore-eos", "--model", model_folder)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(50)
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model_folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("generate", "Once", "-n", "5", "--model", model_folder, stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == b"spikelet: error: cannot write to standard output: No space left on device\n"


def test_on_a_terminal_the_prompt_is_shown_dim(model_folder: Path) -> None:
    terminal = Terminal(["generate", "Once \x1b[2J", "-n", "300", "--model", model_folder])
    assert terminal.finish() == 0
    # The escape that the prompt holds is shown, not obeyed; so are those that the model writes.
    assert terminal.shown.startswith("\x1b[2mOnce ␛[2J\x1b[0m")
    assert "\x1b" not in terminal.shown.removeprefix("\x1b[2mOnce ␛[2J\x1b[0m")
    assert terminal.shown.endswith("\n")


def test_echo_shows_the_prompt_in_a_pipe_too(cli: Cli, model_folder: Path) -> None:
    words = ["generate", "--model", str(model_folder), "A fox", "-n", "4", "--seed", "1"]
    plain = cli(*words)
    assert cli(*words, "--echo").out == "A fox" + plain.out
    assert cli(*words, "--no-echo").out == plain.out


def test_no_color_and_no_echo(model_folder: Path) -> None:
    words: list[str | Path] = ["generate", "Once", "-n", "5", "--model", model_folder]
    terminal = Terminal(words, env={"NO_COLOR": "1"})
    assert terminal.finish() == 0
    assert terminal.shown.startswith("Once")
    terminal = Terminal([*words, "--no-echo"])
    assert terminal.finish() == 0
    assert not terminal.shown.startswith("\x1b")


def test_a_terminal_without_a_prompt(model_folder: Path) -> None:
    terminal = Terminal(["generate", "--model", model_folder])
    assert terminal.finish() == 2
    assert "no prompt" in terminal.shown


def test_ctrl_c_on_a_terminal(model_folder: Path) -> None:
    terminal = Terminal(
        ["generate", "Once", "-n", FOREVER, "--ignore-eos", "--model", model_folder]
    )
    terminal.wait_for("Once")
    terminal.press("\x03")
    assert terminal.finish() == 130
    assert terminal.shown.endswith("\n")
    assert "Traceback" not in terminal.shown
