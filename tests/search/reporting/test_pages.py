"""A finished study in a real browser: MLflow's pages and the report, as their reader sees them."""

import json
import shutil
from collections.abc import Iterator

import pytest
from mlflow_server import MlflowServer
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from search.report import main
from search.reporting.mlflow_note import REPORT_FILE
from search.tracking import page_of

pytestmark = pytest.mark.slow

SPACE = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss": {"choices": ["cross_entropy", "label_smoothing"]},
    "epochs": 2,
    "batch_size": 32,
}
# Titles, legends and ends of axes that lie on one another, in pairs.
OVERLAPPING = """
[...document.querySelectorAll(".plot")].flatMap(plot => {
  const names = ".xtitle, .ytitle, .axis-title, .axis-extent-text, .legendtext, .cbtitle text, .cbaxis text";
  const texts = [...plot.querySelectorAll(names)].filter(one => one.textContent.trim() !== "");
  const boxes = texts.map(one => one.getBoundingClientRect());
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return texts.flatMap((one, k) => texts.slice(k + 1)
    .filter((_, other) => meet(boxes[k], boxes[k + 1 + other]))
    .map(other => [plot.id, one.textContent, other.textContent]));
})
"""
# What MLflow's pages may take to be drawn on a busy machine, in milliseconds.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def searched(new_lab):
    presets = {"probe": {"depth": 0, "lr": 3e-3}, "half": {"depth": 0.5, "lr": 1e-3}}
    # Six models that guess have one accuracy, but losses of their own.
    lab = new_lab(strategy=SPACE, presets=presets, metric="loss")
    assert lab.run("budget.trials=6") == 0
    return lab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "Debian's package chromium is missing; .ci/run installs it"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Browser, width: int, scheme: str = "light") -> tuple[Page, list[str], list[str]]:
    """A page, what it will request beyond itself, and the errors that it will have."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    requests: list[str] = []
    errors: list[str] = []

    def take(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("request", lambda request: requests.append(request.url))
    page.on("console", take)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page, requests, errors


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_the_report_is_drawn_and_asks_for_nothing(searched, browser, tmp_path, width, scheme):
    file = tmp_path / "page.html"
    assert main([str(searched.file), "--out", str(file)]) == 0
    page, requests, errors = opened(browser, width, scheme)
    page.goto(file.as_uri())
    places = page.locator(".plot")
    assert places.count() >= 8
    for place in range(places.count()):
        places.nth(place).locator(".main-svg").first.wait_for(state="attached")
        box = places.nth(place).bounding_box()
        assert box is not None
        assert 200 < box["width"] <= max(width, 704)
        assert box["height"] > 100
    # Points, bars and lines, not only axes.
    assert page.locator(".plot .point").count() >= 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPPING) == []
    if width == 1400:
        assert page.locator(".scroll").evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
    assert page.locator("#winner .name").first.inner_text().startswith("digits/")
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")


def test_the_report_is_used_by_keyboard(searched, browser, tmp_path):
    file = tmp_path / "page.html"
    assert main([str(searched.file), "--out", str(file)]) == 0
    page, _, _ = opened(browser, 1400)
    page.goto(file.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the answer"
    reached = {page.evaluate("document.activeElement.tagName")}
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "DIV", "PRE", "SUMMARY"} <= reached
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#answer"


@pytest.fixture(scope="module")
def server(searched) -> Iterator[str]:
    """MLflow's pages of the study, whose artifacts lie where the study has put them."""
    found = MlflowServer(searched.folder / "mlruns")
    found.start()
    yield found.url
    found.kill()


def test_mlflow_compares_the_runs_by_name_and_parameters(searched, browser, server):
    page, _, _ = opened(browser, 1400)
    runs = sorted(searched.runs().values(), key=lambda run: run.info.run_name)
    ids = json.dumps([run.info.run_id for run in runs])
    experiments = json.dumps([runs[0].info.experiment_id])
    page.goto(f"{server}/#/compare-runs?runs={ids}&experiments={experiments}")
    for run in runs:
        page.get_by_text(run.info.run_name).first.wait_for()
    for name in ("lr", "depth_blocks", "loss"):
        page.get_by_text(name, exact=True).first.wait_for()
    text = page.inner_text("body")
    for run in runs:
        assert run.data.params["lr"] in text


def test_mlflow_lists_the_trials_by_score_with_what_was_searched(searched, browser, server):
    page, _, _ = opened(browser, 1800)
    page.goto(f"{server}/{page_of(searched.parent().info.experiment_id)}")
    page.get_by_test_id("saved-views-trigger").get_by_text("Best first").wait_for()
    for name in ("score", "depth_blocks", "loss", "lr", "seconds"):
        page.get_by_role("columnheader", name=name, exact=True).first.wait_for()
    assert page.get_by_role("columnheader", name="optimizer").count() == 0
    scores = {f"{trial.number} · depth": trial.value for trial in searched.trials()}
    found = {name: page.get_by_role("link", name=name).first.bounding_box() for name in scores}
    listed = sorted(found, key=lambda name: found[name]["y"])
    assert [scores[name] for name in listed] == sorted(scores.values())
    assert len(set(scores.values())) > 2


def test_mlflow_shows_the_note_and_the_report_it_links_to(searched, browser, server):
    parent = searched.parent().info
    page, _, _ = opened(browser, 1400)
    page.goto(f"{server}/#/experiments/{parent.experiment_id}/runs/{parent.run_id}")
    link = page.get_by_role("link", name="Report", exact=True)
    link.wait_for()
    best = searched.study.best_trial.number
    page.get_by_role("link", name=f"{best} · depth").first.wait_for()
    with page.context.expect_page() as opening:
        link.click()
    report = opening.value
    assert report.url.endswith(f"/artifacts/{REPORT_FILE}")
    report.frame_locator("iframe").first.get_by_text("Best strategy of 6 trials").wait_for()
