"""The page in headless Chromium: drawn, quiet, within the screen, reachable by keyboard."""

import os
import shutil

import pytest

from batchfree.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: set CHROMIUM to its path, or install one"
)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Bands and lines: five of each in the summary; five BN curves, four others; five training curves.
LINES = [10, 5, 1, 1, 1, 1, 5]
COLOR = "getComputedStyle(document.querySelectorAll('.plot .js-line')[1]).stroke"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    return write_report(results, path, figures=False).as_uri()


@pytest.fixture
def visit(browser, report):
    contexts, problems = [], []

    def go(scheme="light", width=1280, phone=False):
        context = browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme=scheme,
            has_touch=phone,
            is_mobile=phone,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: asked.url == report or problems.append(asked.url))
        page.goto(report)
        wait(page, f"document.querySelectorAll('.xaxislayer-above').length >= {len(LINES)}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert problems == []


def wait(page, condition):
    """Until a JavaScript condition holds; Playwright's own wait needs eval, which the page bars."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within ten seconds: {condition}")


def drawn(page):
    """How many lines have a path, for each plot."""
    return page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => [...plot.querySelectorAll("
        "'.scatterlayer .trace')].filter(trace => trace.querySelector('path[d^=M]')).length)"
    )


def page_width(page):
    return page.evaluate("document.documentElement.scrollWidth")


@pytest.mark.parametrize(
    ("scheme", "width", "phone"),
    [("light", 1280, False), ("dark", 390, True)],
)
def test_every_line_is_drawn_within_the_screen(visit, scheme, width, phone):
    page = visit(scheme, width, phone)
    assert drawn(page) == LINES
    assert page_width(page) == width
    boxes = page.evaluate(
        "[...document.querySelectorAll('.plot .main-svg')].map(s => s.getBoundingClientRect())"
        ".map(box => [box.left, box.right])"
    )
    assert all(0 <= left < right <= width for left, right in boxes)


def test_plots_follow_the_theme_and_the_width(visit):
    page = visit("light")
    light = page.evaluate(COLOR)
    page.emulate_media(color_scheme="dark")
    wait(page, f"{COLOR} !== {light!r}")
    assert drawn(page) == LINES
    page.set_viewport_size({"width": 390, "height": 844})
    wait(page, "document.querySelector('.main-svg').clientWidth < 390")
    assert page_width(page) == 390


def test_keyboard_and_mouse(visit):
    page = visit()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(({tagName, className}) => tagName === 'BODY' ? null : tagName + '.' + className)"
            "(document.activeElement)"
        )
        if name is None:
            break
        reached.append(name)
    assert reached[0] == "A.skip"
    assert reached.count("BUTTON.") == 5 + 6 + 5
    assert reached.count("SUMMARY.") == 3 * 2 + 2
    assert reached.count("DIV.scroll") == 2

    button = page.locator(".legend button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert drawn(page)[0] == LINES[0] - 2
    page.keyboard.press("Enter")
    assert drawn(page)[0] == LINES[0]

    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] table").first.is_visible()

    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.locator(".plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.93, box["y"] + box["height"] / 2)
    page.locator(".hoverlayer .legendtext").first.wait_for()
    told = page.locator(".plot .hoverlayer").first.text_content()
    assert "normalisation batch 2" in told
    assert "9.5%" in told
