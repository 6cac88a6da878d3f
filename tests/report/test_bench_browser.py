"""The benchmark's page in headless Chromium: drawn, quiet, within the screen, by keyboard."""

import os
import shutil

import pytest
from bench_rows import ORIGIN, kernel_row

from batchfree.bench.results import Bench
from batchfree.report import write_bench_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: set CHROMIUM to its path, or install one"
)
PEERS = ("eager", "batchfree", "batch_norm", "floor")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_is_drawn_and_reached_by_keyboard(tmp_path, scheme, width):
    rows = tuple(
        kernel_row(peer, layout=layout, dtype=dtype)
        for layout in ("contiguous", "channels_last")
        for dtype in ("float32", "bfloat16")
        for peer in PEERS
    )
    written = write_bench_page([Bench(ORIGIN, True, rows, (), ())], tmp_path / "bench.html")
    url, problems = written.as_uri(), []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: asked.url == url or problems.append(asked.url))
        page.goto(url)
        for _ in range(100):
            marks = page.evaluate("document.querySelectorAll('.plot .points path').length")
            if marks == 2 * 4 * 3:
                break
            page.wait_for_timeout(100)
        assert marks == 2 * 4 * 3
        assert page.evaluate("document.documentElement.scrollWidth") == width
        button = page.locator(".legend button").first
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"
        assert page.evaluate("document.querySelectorAll('.plot .points path').length") == 20
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details[open] table").first.is_visible()
        browser.close()
    assert problems == []
