"""As a person would: the playground in JupyterLab, and report.html on a telephone and a desk, in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import write_study
from lab import ARGUMENTS, CHROMIUM, jupyter_lab, run_all_cells

from wmlkit import paths, train
from wmlkit.config import load_preset
from wmlkit.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install Debian's package chromium")

WIDTHS = {"telephone": 360, "desk": 1440}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM, args=ARGUMENTS, headless=True
        )
        yield context
        context.close()


class Watched:
    """A page that remembers what went wrong on it."""

    def __init__(self, browser, width: int, height: int = 900) -> None:
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))


# report.html


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = (("independent", 2), ("wml", 2), ("distill", 2))
    out = tmp_path_factory.mktemp("out") / "nursery"
    folder = write_study(out, study, (0, 1), ("babylm2025",), overrides={"train.steps": 100})
    (folder / "tables").mkdir()
    for name in ("T2", "T3", "T9"):  # what runs alone do not give
        shutil.copy(paths.reference("nursery") / "tables" / f"{name}.csv", folder / "tables")
    write_report(folder)
    return folder / "report.html"


@pytest.fixture
def opened(browser, report: Path, request) -> Iterator[Watched]:
    watched = Watched(browser, WIDTHS[request.param])
    watched.page.goto(report.as_uri())
    yield watched
    watched.page.close()


both = pytest.mark.parametrize("opened", WIDTHS, indirect=True)


@both
def test_the_report_fits_its_window_and_makes_no_error(opened: Watched) -> None:
    width = opened.page.viewport_size["width"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the window scrolls inside its own frame, and nothing else sticks out.
    outside = opened.page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll, nav ul")
            && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    assert opened.errors == []
    assert all(url.startswith(("file:", "data:")) for url in opened.requests)


@both
def test_every_picture_of_the_report_is_seen(opened: Watched) -> None:
    sizes = opened.page.evaluate("[...document.images].map((one) => [one.complete, one.naturalWidth, one.width])")
    assert len(sizes) >= 5 and all(complete and natural > 0 and shown > 100 for complete, natural, shown in sizes)


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_a_click_on_a_head_sorts_the_rows(opened: Watched) -> None:
    table = opened.page.locator("#t7 ~ .scroll table").first
    head = table.locator("th.number button", has_text="tokens").first
    column = head.evaluate("(button) => button.parentElement.cellIndex")

    def values() -> list[float]:
        texts = table.locator(f"tbody td:nth-child({column + 1})").all_text_contents()
        return [float(re.match(r"[+-]?[\d,.]+", text)[0].replace(",", "")) for text in texts]

    before = values()
    head.click()
    assert values() == sorted(before)
    head.click()
    assert values() == sorted(before, reverse=True) != sorted(before)


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_the_navigation_leads_to_the_sections(opened: Watched) -> None:
    opened.page.emulate_media(reduced_motion="reduce")  # else the page scrolls smoothly, on a busy machine for long
    for link in opened.page.locator("nav a").all():
        link.click()
        target = opened.page.locator(link.get_attribute("href"))
        assert target.count() == 1
        assert opened.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert opened.page.evaluate("scrollY") > 100


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_light_and_dark_and_print_differ_where_they_should(opened: Watched) -> None:
    def background() -> str:
        return opened.page.evaluate("getComputedStyle(document.body).backgroundColor")

    opened.page.emulate_media(color_scheme="light")
    light = background()
    opened.page.emulate_media(color_scheme="dark")
    assert light == "rgb(255, 255, 255)" != background()
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert background() == light
    assert not opened.page.locator("nav").is_visible()
    opened.page.set_viewport_size({"width": 700, "height": 1000})  # about A4 between its margins
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 700


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_in_print_the_names_of_a_wide_table_s_rows_can_be_read(opened: Watched) -> None:
    """Not one letter below the other: `case` of T9 had 25 pixels."""
    opened.page.emulate_media(media="print")
    opened.page.set_viewport_size({"width": 700, "height": 1000})
    first = (
        "[...document.querySelectorAll('.wide tbody td:first-child')].map((one) => one.getBoundingClientRect().width)"
    )
    widths = opened.page.evaluate(first)
    assert widths and min(widths) > 40
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 700


# accessibility


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm to fetch axe-core with")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer: no network?")
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if done.returncode or not script.is_file():
        pytest.skip(f"npm could not fetch axe-core: {done.stderr.strip()[-200:]}")
    return script.read_text(encoding="utf-8")


def violations(page, axe: str) -> list[str]:
    """Serious and critical violations that axe-core finds."""
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:150]} ({len(one['nodes'])}x)"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("opened", "scheme"), [("telephone", "light"), ("desk", "dark")], indirect=["opened"])
def test_the_report_has_no_serious_barrier(opened: Watched, axe: str, scheme: str) -> None:
    opened.page.emulate_media(color_scheme=scheme)
    for details in opened.page.locator("details").all():
        details.evaluate("(one) => one.open = true")
    assert violations(opened.page, axe) == []


def test_axe_sees_a_barrier_where_there_is_one(browser, axe: str) -> None:
    watched = Watched(browser, 800)
    watched.page.set_content('<html><body><img src="x.png"><p style="color:#bbb">pale</p></body></html>')
    assert {line.split(":")[0] for line in violations(watched.page, axe)} >= {"image-alt", "color-contrast"}
    watched.page.close()


# the playground in JupyterLab


@pytest.fixture(scope="module")
def lab_page(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The playground in JupyterLab, on a small trained run."""
    root = tmp_path_factory.mktemp("lab")
    train.run(load_preset("smoke", {"mutual.arm": "wml"}), root / "runs")
    with jupyter_lab(root, "08_playground", {"preset": "smoke", "out": str(root / "runs")}) as address:
        watched = Watched(browser, 1440, 1000)
        watched.page.goto(address)
        yield watched
        watched.page.close()


def test_the_playground_runs_in_jupyterlab_and_a_slider_moves_its_picture(lab_page: Watched) -> None:
    page = lab_page.page
    run_all_cells(page)
    ended = page.locator(".jp-OutputArea-output").get_by_text("the ensemble's loss with the learned weights is")
    ended.wait_for(timeout=120_000)
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    assert page.locator(".widget-slider").count() == 1 + 2 + 1  # weights of two peers, search, replay
    assert page.locator(".widget-text input").count() == 3

    box = page.locator(".jp-OutputArea-output", has=page.get_by_text("weight of peer 1")).last
    box.scroll_into_view_if_needed()
    before = box.locator("img").get_attribute("src")
    assert "Weights 0.5" in box.text_content()  # 12 updates hardly move them
    place = box.locator(".noUi-handle").bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + 120, place["y"] + place["height"] / 2, steps=5)
    page.mouse.up()
    changed = "([box, old]) => box.querySelector('img').src !== old && /Weights 0.[789]/.test(box.textContent)"
    page.wait_for_function(changed, arg=[box.element_handle(), before], timeout=60_000)

    page.get_by_role("heading", name="Which sentence is better?").scroll_into_view_if_needed()
    typed = page.locator(".widget-text input").first
    typed.fill("Yesterday Zoe slept.")
    typed.press("Enter")
    page.locator(".widget-html th", has_text="Y").first.wait_for(timeout=60_000)
    assert lab_page.errors == []
