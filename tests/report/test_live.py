"""The page that a process serves while it trains."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spikelet import OptionError
from spikelet.training import live

from .browser import Browser, find_browser
from .fixtures import LM_COLUMNS, lm_rows, make_run, write_csv


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in the middle of its training."""
    folder = make_run(tmp_path / "fox", steps=100, model=False)
    (folder / "training" / "complete.pth").unlink()
    write_csv(folder / "training" / "train_log.csv", LM_COLUMNS, lm_rows(100)[:20])
    return folder


@pytest.fixture
def server(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[live.LiveServer]:
    monkeypatch.setattr(live, "_REST", 0)
    monkeypatch.setattr(live, "_PAUSE", 0)
    server = live.start(run, port=0)
    yield server
    server.close()


def get(port: int, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def data(port: int) -> dict[str, Any]:
    status, text = get(port, "/data.json")
    assert status == 200
    document: dict[str, Any] = json.loads(text)
    return document


def wait_for_steps(port: int, steps: int) -> dict[str, Any]:
    for _ in range(100):
        document = data(port)
        if document["runs"][0]["columns"].get("step", [0])[-1] == steps:
            return document
        threading.Event().wait(0.05)
    raise AssertionError(f"the page never showed step {steps}")


def test_t24_the_page_answers_and_follows_the_run(server: live.LiveServer, run: Path) -> None:
    status, page = get(server.port)
    assert status == 200
    assert "<title>fox</title>" in page
    assert "connect-src 'self'" in page
    document = wait_for_steps(server.port, 20)
    assert document["live"] is True
    assert document["runs"][0]["state"] == "running"
    assert data(server.port)["made"] == document["made"], "nothing is read twice"
    write_csv(run / "training" / "train_log.csv", LM_COLUMNS, lm_rows(100))
    (run / "training" / "complete.pth").write_bytes(b"")
    assert wait_for_steps(server.port, 100)["runs"][0]["state"] == "finished"


def test_a_run_that_has_written_nothing_yet_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "new" / "training").mkdir(parents=True)
    server = live.start(tmp_path / "new", port=0)
    try:
        assert data(server.port)["runs"][0]["notes"] == ["the log holds no rows yet"]
    finally:
        server.close()


def test_only_this_machine_is_answered(server: live.LiveServer) -> None:
    assert server.address == f"http://127.0.0.1:{server.port}"
    assert get(server.port, host=f"localhost:{server.port}")[0] == 200
    assert get(server.port, host=f"evil.example:{server.port}")[0] == 403
    assert get(server.port, "/../config.json")[0] == 404


def test_t25_a_port_in_use_gives_the_next_one_and_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = live.start(run, port)
        try:
            assert port < server.port < port + 10
            assert str(server) == f"{server.address} (port {port} is taken)"
            assert get(server.port)[0] == 200
        finally:
            server.close()
        monkeypatch.setattr(live, "_PORTS_TRIED", 1)
        with pytest.raises(OptionError, match=rf"`server_port`: ports {port} to {port} are taken"):
            live.start(run, port)
    with pytest.raises(OptionError, match="`server_port`: 70000"):
        live.start(run, 70_000)


def test_closing_frees_the_port_and_may_happen_twice(run: Path) -> None:
    server = live.start(run, port=0)
    port = server.port
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        get(port)
    again = live.start(run, port)
    try:
        assert again.port == port
        assert str(again) == again.address
    finally:
        again.close()


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the page cannot be opened")
def test_g05_the_page_redraws_itself_and_tells_of_the_end(
    server: live.LiveServer, run: Path, tmp_path: Path
) -> None:
    place = run / "training"
    with Browser(tmp_path / "profile", offline=False) as browser:
        quick = "const slow = setTimeout; window.setTimeout = (f, ms) => slow(f, ms / 20);"
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=quick)
        browser.open(server.address)
        assert "● running" in browser.text("h1")
        line = "document.querySelector('path.line').getAttribute('d').split(',').length"
        assert browser.run(line) == 21
        write_csv(place / "train_log.csv", LM_COLUMNS, lm_rows(100)[:60])
        browser.wait_for(f"{line} === 61")
        (place / "exception.log").write_text("TrainingError: loss is nan at step 60")
        browser.wait_for("document.querySelector('.notice.bad')?.innerText.includes('nan at step')")
        assert "✕ failed" in browser.text("h1")
        (place / "exception.log").unlink()
        (place / "complete.pth").write_bytes(b"")
        browser.wait_for("document.body.innerText.includes('training has ended (finished)')")
        assert browser.problems == []
        port = server.port
        server.close()
        browser.wait_for("document.querySelector('#connection').offsetHeight > 0")
        assert "does not answer" in browser.text("#connection")
        again = live.start(run, port)
        try:
            browser.wait_for("document.querySelector('#connection').hidden")
        finally:
            again.close()
