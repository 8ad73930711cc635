"""The file itself: complete, closed to the outside, and readable in its colours."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spikelet.report import write_report
from spikelet.report.page import make_page, to_json

from .fixtures import make_run

ASSETS = Path(__file__).parents[2] / "python" / "spikelet" / "report" / "assets"
HOSTILE = "</script><!-- <script> ]]> & \u2028 \u2029 \ud800"


class Reader(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def test_hostile_texts_cannot_leave_their_place() -> None:
    page = Reader(make_page({"title": HOSTILE, "x": {HOSTILE: HOSTILE}}))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 4
    assert json.loads(page.scripts[0])["x"] == {
        HOSTILE.replace("\ud800", "?"): HOSTILE.replace("\ud800", "?")
    }
    assert not set("<>&\u2028\u2029") & set(to_json({"x": HOSTILE}))


def test_only_the_scripts_of_the_package_may_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_report([str(make_run(tmp_path / "fox"))], path)
    text = path.read_text()
    page = Reader(text)
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv"))
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert not any("src" in attributes for _, attributes in page.tags)
    links = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text))
    assert links == {"http://www.w3.org/2000/svg"}, "only the name of the language SVG"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_long_run_stays_below_two_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_report([str(make_run(tmp_path / "long", steps=30_000))], path)
    assert path.stat().st_size < 2_000_000


def test_a_failed_report_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    run = str(make_run(tmp_path / "fox", model=False))

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report([run], path)
    assert path.read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fox", "page.html"]


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_in_light_and_dark() -> None:
    style = (ASSETS / "report.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for name in ("ink", "soft", "good", "bad", "warn"):
            assert contrast(colors[name], colors["panel"]) >= 4.5, name
        assert contrast(colors["ink"], colors["mark"]) >= 4.5
        for name in (*(f"c{index}" for index in range(8)), "site0", "site1"):
            assert contrast(colors[name], colors["panel"]) >= 3, name
