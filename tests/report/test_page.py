"""The file itself: complete, closed to the outside, and readable in its colours."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
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
    write_report([str(make_run(tmp_path / "long", steps=15_000))], path)
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


def palettes() -> list[dict[str, str]]:
    """The colours of the light and of the dark page by name."""
    blocks = re.findall(r":root \{(.*?)\}", (ASSETS / "report.css").read_text(), re.DOTALL)
    assert len(blocks) == 2
    return [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]


def linear(color: str) -> list[float]:
    """Red, green and blue as amounts of light."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(color: str) -> float:
    red, green, blue = linear(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_in_light_and_dark() -> None:
    for colors in palettes():
        for name in ("ink", "soft", "good", "bad", "warn"):
            assert contrast(colors[name], colors["panel"]) >= 4.5, name
        assert contrast(colors["ink"], colors["mark"]) >= 4.5
        for name in (*(f"c{index}" for index in range(8)), "site0", "site1"):
            assert contrast(colors[name], colors["panel"]) >= 3, name


# Machado, Oliveira and Fernandes 2009, at full severity: what is left of red, green and blue.
VISIONS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(color: str, vision: str) -> list[float]:
    """CIELAB of a colour as someone sees it."""
    rgb = linear(color)
    red, green, blue = (
        min(1.0, max(0.0, sum(a * b for a, b in zip(row, rgb, strict=True))))
        for row in VISIONS[vision]
    )
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


@pytest.mark.parametrize("vision", VISIONS)
def test_runs_are_told_apart_with_every_kind_of_colour_vision(vision: str) -> None:
    for colors in palettes():
        for group in (range(4), range(4, 8)):  # solid lines, dashed lines
            seen = [lab(colors[f"c{index}"], vision) for index in group]
            apart = [math.dist(a, b) for a, b in itertools.combinations(seen, 2)]
            assert min(apart) > 20
