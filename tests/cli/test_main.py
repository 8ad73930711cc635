"""The entry point: help, version, errors in one line, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import spikelet
from spikelet.cli import available_commands

from .helpers import PROGRAM, Cli, environment


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"spikelet {spikelet.__version__}\n"


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    result = cli()
    assert result.code == 0
    assert all(name in result.out for name in available_commands())


@pytest.mark.parametrize("command", available_commands())
def test_every_command_has_help_with_examples(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: spikelet {command}")
    assert f"\n  spikelet {command}" in result.out.partition("examples:")[2]


def test_help_shows_the_engine_defaults(cli: Cli) -> None:
    text = " ".join(cli("generate", "--help").out.split())
    defaults = spikelet.default_options()
    for name in ("max_new_tokens", "temperature", "top_p", "preset"):
        after = text.partition(f"--{name.replace('_', '-')} ")[2].partition(" --")[2]
        assert f"(default: {defaults[name]})" in text, (name, after)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["genrate"], "did you mean 'generate'?"),
        (["zzz"], "unknown command 'zzz'"),
        (["generate", "x", "--temprature", "1"], "did you mean --temperature?"),
        (["generate", "x", "y"], "unexpected argument y"),
        (["generate", "x", "--temperature", "warm"], "--temperature"),
        (["info", "--frobnicate"], "--frobnicate"),
        (["convert"], "SRC"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(cli: Cli, words: list[str], needed: str) -> None:
    result = cli(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("spikelet: error: ")
    assert result.err.count("\n") == 1
    assert needed in result.err


def test_a_missing_model_is_one_line_and_code_1(cli: Cli, tmp_path: Path) -> None:
    result = cli("info", tmp_path / "nowhere")
    assert result.code == 1
    assert result.err.startswith("spikelet: error: ")
    assert result.err.count("\n") == 1
    assert "nowhere" in result.err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(
    cli: Cli, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[str | Path] = ["info", tmp_path / "nowhere"]
    if how == "option":
        words.append("--debug")
    else:
        monkeypatch.setenv("SPIKELET_DEBUG", "1")
    result = cli(*words)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "spikelet: error: " in result.err


def test_commands_do_not_import_torch(model_folder: Path) -> None:
    code = (
        "import sys\n"
        "from spikelet.cli import main\n"
        f"assert main(['generate', 'x', '-n', '2', '--model', {str(model_folder)!r}]) == 0\n"
        "assert main(['generate', '--help']) == 0\n"
    )
    check = "assert not {'torch', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
    code = code.replace("assert main(['generate', '--help']) == 0\n", check)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_missing_torch_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import spikelet.cli

    class NeedsTorch:
        @staticmethod
        def configure(parser: object) -> None: ...

        @staticmethod
        def run(args: object) -> int:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(spikelet.cli, "load_command", lambda name: NeedsTorch)
    result = cli("models")
    assert result.code == 1
    assert (
        result.err == "spikelet: error: torch is needed for this: pip install 'spikelet[train]'\n"
    )


def test_output_is_utf8_in_any_locale(model_folder: Path) -> None:
    run = subprocess.run(
        [*PROGRAM, "generate", "é", "--json", "-n", "1", "--model", str(model_folder)],
        env=environment({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}),
        capture_output=True,
        check=True,
    )
    assert "é" in run.stdout.decode()


def test_closed_output_streams(model_folder: Path) -> None:
    command = f"{' '.join(PROGRAM)} info {model_folder} >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 0
