"""Not a test: makes the pictures of README.md in figures/screenshots/.

    python tests/screenshots.py

Runs notebooks 00 and 08 of preset nursery in a JupyterLab of its own, and photographs training half-way and the
playground's slider. Takes about three minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import ARGUMENTS, CHROMIUM, jupyter_lab, run_all_cells
from playwright.sync_api import sync_playwright

from wmlkit import paths

SIZE = {"width": 1100, "height": 760}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        root = Path(name)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for notebook, photograph in (("00_start_here", training), ("08_playground", playground)):
            (root / notebook).mkdir()
            with jupyter_lab(root / notebook, notebook, {"out": str(root / "runs")}) as address:
                page = browser.new_page(viewport=SIZE)
                page.goto(address.replace("/lab/", "/doc/"))  # without side bars
                photograph(page, root / "runs", folder)
                page.close()
        browser.close()


def training(page: Any, runs: Path, folder: Path) -> None:
    run_all_cells(page)
    _until(lambda: any('"step": 300,' in log.read_text() for log in runs.glob("nursery/wml-*/metrics.jsonl")))
    _photograph(page, page.get_by_role("heading", name="Training, live"), folder / "training.png")
    _until(lambda: any(runs.glob("nursery/wml-*/done.json")))


def playground(page: Any, runs: Path, folder: Path) -> None:
    run_all_cells(page)
    page.locator(".jp-OutputArea-output").get_by_text("the ensemble's loss with the learned weights").wait_for(
        timeout=120_000
    )
    box = page.locator(".jp-OutputArea-output", has=page.get_by_text("weight of peer 1")).last
    box.scroll_into_view_if_needed()
    place = box.locator(".noUi-handle").bounding_box()
    page.mouse.move(place["x"] + 5, place["y"] + 5)
    page.mouse.down()
    page.mouse.move(place["x"] - 60, place["y"] + 5, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1500)
    _photograph(page, page.get_by_role("heading", name="Move the weights"), folder / "playground.png")


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < end, "nothing happened for ten minutes"
        time.sleep(0.5)


def _photograph(page: Any, heading: Any, path: Path) -> None:
    """What is seen of the notebook from `heading` on, without bars and menus."""
    offer = page.get_by_role("button", name="No", exact=True)  # of news, by JupyterLab
    if offer.count():
        offer.click()
    heading.click()  # so that the notebook stays there
    heading.evaluate("(one) => one.scrollIntoView()")
    page.wait_for_timeout(3000)
    heading.evaluate("(one) => one.scrollIntoView()")
    page.wait_for_timeout(500)
    page.locator(".jp-NotebookPanel-notebook").last.screenshot(path=path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else paths.REFERENCES / "screenshots")
