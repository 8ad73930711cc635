"""`spikelet report`: what it writes, opens and refuses."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

import spikelet
from report.fixtures import make_run

from .helpers import Cli


def test_a_run_by_name_becomes_one_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(spikelet.home() / "runs" / "fox", steps=20)
    monkeypatch.chdir(tmp_path)
    result = cli("report", "fox")
    assert result.code == 0, result.err
    assert result.out.startswith("report.html (")
    page = (tmp_path / "report.html").read_text()
    assert "<title>fox</title>" in page
    assert '"surprise":' in page


def test_the_text_is_a_file_or_the_words_themselves(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "fox", steps=20)
    story = tmp_path / "story.txt"
    story.write_text("AB")
    for given, tokens in ((story, '["A","B"]'), ("CD", '["C","D"]')):
        assert cli("report", run, "--text", given, "--out", tmp_path / "a.html").code == 0
        assert f'"tokens":{tokens}' in (tmp_path / "a.html").read_text()
    assert cli("report", run, "--text", "x" * 5000, "--out", tmp_path / "a.html").code == 0


def test_open_shows_the_page(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "fox", steps=20, model=False)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) == 1)
    page = tmp_path / "a page.html"
    assert cli("report", run, "--open", "-o", page).code == 0
    assert opened == [page.as_uri()]
    assert "no browser could be started" in cli("report", run, "--open", "-o", page).out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "RUN"),
        (("nothing",), 1, "'nothing'"),
        (("{run}", "--out", "{folder}"), 2, "--out {folder}: is a folder"),
        (("{run}", "--out", "{folder}/no/page.html"), 1, "No such file or directory"),
        (("{run}", "--text", ""), 2, "--text: it is empty"),
        (("{run}", "{run}", "--out", "{folder}/x.html"), 2, "is given twice"),
    ],
)
def test_mistakes(cli: Cli, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    names = {"run": str(make_run(tmp_path / "fox", model=False)), "folder": str(tmp_path)}
    result = cli("report", *(word.format(**names) for word in words))
    assert result.code == code
    assert said.format(**names) in result.err
    assert len(result.err.splitlines()) == 1
