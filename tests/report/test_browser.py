"""The page in a real browser that has no network: it draws, its switches work, nothing leaks in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from spikelet.report import write_report

from .browser import Browser, find_browser
from .fixtures import LM_COLUMNS, lm_rows, make_run, write_csv

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: the page cannot be opened"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "browser" in request.fixturenames:
        browser = request.getfixturevalue("browser")
        browser.requests.clear()
        browser.problems.clear()


def show(browser: Browser, page: Path, *runs: Path, text: str | None = None) -> None:
    write_report([str(run) for run in runs], page, text=text)
    browser.open(page.as_uri())


def assert_quiet_and_offline(browser: Browser) -> None:
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def line(browser: Browser, title: str, nth: int = 0) -> str:
    """The path of a chart's line."""
    script = (
        "[...document.querySelectorAll('figure')].find((f) => f.querySelector('figcaption')"
        f"?.innerText.startsWith({json.dumps(title)})).querySelectorAll('path.line')[{nth}]"
        ".getAttribute('d')"
    )
    return str(browser.run(script))


def test_one_run_is_drawn_whole(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "fox", steps=300)
    show(browser, tmp_path / "page.html", run, text="The fox slept.")
    assert_quiet_and_offline(browser)
    assert browser.count("svg.chart") == 7 + 3 + 1
    assert browser.count("path.line") == 4 + 5
    assert line(browser, "Loss").count(",") == 300
    assert browser.count("svg.heat rect") == 3 * 6 * 60
    assert browser.count("path.spikes") == 4 * 2
    assert browser.count("svg.raster .token") == len("The fox slept.")
    text = browser.text()
    for part in ("fox", "✓ finished", "best validation loss", "249k parameters", "learning_rate"):
        assert part in text
    assert "NaN" not in browser.run("document.body.outerHTML")


def test_switches(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path / "page.html", make_run(tmp_path / "fox", steps=300))
    by_step = line(browser, "Loss")
    browser.click("#x-tokens")
    assert browser.run("document.querySelector('svg.chart .label').textContent") == "tokens"
    browser.click("#x-seconds")
    assert browser.run("document.querySelector('svg.chart .label').textContent") == "seconds"
    browser.click("#x-step")
    assert line(browser, "Loss") == by_step
    browser.click("#log-loss")
    logarithmic = line(browser, "Loss")
    assert logarithmic != by_step
    browser.click("#log-loss")
    browser.click("#whole-loss")
    assert line(browser, "Loss") not in (by_step, logarithmic)
    browser.click("#metric-perplexity")
    assert "Perplexity" in browser.text()
    assert browser.count("path.raw") > 0
    browser.run(
        "(() => { const e = document.querySelector('#smooth'); e.value = 0;"
        "e.dispatchEvent(new Event('input')); })()"
    )
    assert browser.count("path.raw") == 0
    lines = browser.count("path.line")
    browser.click("#layers-lines")
    assert browser.count("path.line") == lines + 3 * 6
    assert_quiet_and_offline(browser)


def test_a_range_is_zoomed_into_and_read_out(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path / "page.html", make_run(tmp_path / "fox", steps=300))
    whole = line(browser, "Gradient norm")
    browser.drag("svg.chart", 0.5, 0.75)
    assert line(browser, "Gradient norm") != whole, "all charts follow"
    assert browser.count("#unzoom") == 1
    tip = browser.text(".tip:not([hidden])") if browser.count(".tip:not([hidden])") else ""
    browser.click("#unzoom")
    assert line(browser, "Gradient norm") == whole
    browser.run("document.querySelector('svg.chart').focus()")
    browser.run(
        "document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    )
    tip = browser.text(".tip:not([hidden])")
    assert "training" in tip
    assert "step" in tip
    assert_quiet_and_offline(browser)


def test_samples_are_scrubbed_through(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path / "page.html", make_run(tmp_path / "fox", steps=100))
    assert "step 100" in browser.text(".scrub")
    assert browser.text(".sample").count("counted the stars") == 5
    browser.run(
        "(() => { const e = document.querySelector('#sample'); e.value = 1;"
        "e.dispatchEvent(new Event('input')); })()"
    )
    assert "step 40" in browser.text(".scrub")
    assert browser.text(".sample").count("counted the stars") == 2


def test_g07_g08_several_runs_side_by_side(browser: Browser, tmp_path: Path) -> None:
    first = make_run(tmp_path / "fox", steps=200)
    second = make_run(
        tmp_path / "owl", steps=120, level=1.0, seed=1, model=False, trainer={"optimizer": "muon"}
    )
    (second / "training" / "complete.pth").unlink()
    show(browser, tmp_path / "page.html", first, second)
    assert_quiet_and_offline(browser)
    assert browser.count("path.line") == 2 * (4 + 5)
    lines = "document.querySelectorAll('section:first-of-type path.line')"
    colors = f"[...{lines}].map((path) => path.style.stroke)"
    assert browser.run(colors) == ["var(--c0)", "var(--c0)", "var(--c1)", "var(--c1)"]
    assert browser.run(
        "[...document.querySelectorAll('tr.differs th')].map((e) => e.innerText)"
    ) == [
        "max_step",
        "optimizer",
        "seed",
    ]
    assert browser.count("td.odd") == 2 * 3
    assert browser.count("details[open]") == 0
    assert "11 settings are equal" in browser.text("details")
    browser.click("#run-0")
    assert browser.run(colors) == ["var(--c1)", "var(--c1)"], "a run keeps its colour"
    browser.click("#run-0")
    browser.click("#raster-1")
    assert "no exported model yet" in browser.text()


HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\u2028"


def test_texts_of_files_stay_texts(browser: Browser, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "fox<img src=x onerror=window.broken=3>",
        config={HOSTILE: HOSTILE},
        trainer={"note": HOSTILE},
    )
    place = run / "training"
    (place / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": HOSTILE, "text": HOSTILE})
    )
    (place / "exception.log").write_text(HOSTILE)
    series = {HOSTILE: ["step", HOSTILE]}
    (place / "external_config.json").write_text(
        json.dumps({"model_class": HOSTILE, "series": series})
    )
    rows = [{**row, HOSTILE: row["step"]} for row in lm_rows(20)]
    write_csv(place / "train_log.csv", [*LM_COLUMNS, HOSTILE], rows)
    show(browser, tmp_path / "page.html", run)
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("window.broken") is None
    assert browser.count("img, main script") == 0
    assert HOSTILE.strip() in browser.text(".sample")
    assert HOSTILE[:60] in browser.text(".notice.bad")
    assert_quiet_and_offline(browser)


def test_the_policy_stops_a_script_that_gets_in(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_report([str(make_run(tmp_path / "fox", model=False))], page)
    page.write_text(
        page.read_text().replace("</main>", "</main><script>window.broken = 1</script>")
    )
    browser.open(page.as_uri())
    assert browser.run("window.broken") is None
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_t23_series_of_a_custom_model(browser: Browser, tmp_path: Path) -> None:
    place = tmp_path / "mnist" / "training"
    place.mkdir(parents=True)
    series = {"how often it is right": ["step", "accuracy"], "trade": ["spikes", "accuracy"]}
    (place / "external_config.json").write_text(
        json.dumps({"model_class": "Net", "series": series})
    )
    rows = [{"step": n, "accuracy": n / 50, "spikes": 100 - n, "extra": n * n} for n in range(50)]
    write_csv(place / "train_log.csv", ["step", "accuracy", "spikes", "extra"], rows)
    show(browser, tmp_path / "page.html", tmp_path / "mnist")
    assert_quiet_and_offline(browser)
    captions = browser.run("[...document.querySelectorAll('figcaption b')].map((e) => e.innerText)")
    assert captions[:4] == ["how often it is right", "trade", "spikes", "extra"]
    text = browser.text()
    assert "perplexity" not in text
    assert "neuron by neuron" not in text
    assert browser.count("path.line") == 4


def test_awkward_runs_are_drawn(browser: Browser, tmp_path: Path) -> None:
    """One row, equal values, NaN, no rows, a folder with a log only."""
    single = make_run(tmp_path / "single", model=False)
    write_csv(single / "training" / "train_log.csv", LM_COLUMNS, lm_rows(200)[:1])
    flat = make_run(tmp_path / "flat", model=False)
    rows = [{**row, "train_loss": 2.0, "val_loss": "nan", "grad_norm": 0} for row in lm_rows(30)]
    write_csv(flat / "training" / "train_log.csv", LM_COLUMNS, rows)
    empty = make_run(tmp_path / "empty", model=False)
    write_csv(empty / "training" / "train_log.csv", LM_COLUMNS, [])
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(single / "training" / "train_log.csv", bare)
    for runs in ([single], [flat], [empty], [bare], [single, flat, empty, bare]):
        show(browser, tmp_path / "page.html", *runs)
        for button in ("#x-tokens", "#x-seconds", "#log-loss", "#log-grad_norm", "#layers-lines"):
            if browser.count(button):
                browser.click(button)
        assert_quiet_and_offline(browser)
        assert "NaN" not in browser.run(
            "document.querySelector('main').innerHTML.replace(/is nan/g, '')"
        )


def test_dark_narrow_and_paper(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path / "page.html", make_run(tmp_path / "fox"))
    color = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(color) == "rgb(255, 255, 255)"
    browser.media(scheme="dark")
    assert browser.run(color) == "rgb(15, 19, 24)"
    browser.media(scheme="dark", kind="print")
    assert browser.run(color) == "rgb(255, 255, 255)"
    browser.media()
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=380,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.settle()
    browser.run("new Promise((done) => setTimeout(done, 100))")
    wide = "document.documentElement.scrollWidth"
    assert browser.run(wide) <= 380, "nothing sticks out of a narrow window"
    browser.call("Emulation.clearDeviceMetricsOverride")
