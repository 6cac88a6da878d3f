"""A report on paper: JSON, the page in a real browser, the terminal."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from torch import nn
from zoo import images, net

import batchfree
from batchfree.audit.report import Finding, Mode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    model = net(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.BatchNorm2d(8))
    return batchfree.audit(model, images(12), name="<script>alert(1)</script>")


def test_json_holds_everything(report):
    value = json.loads(report.to_json())
    assert value["ok"] is False
    assert value["schema"] == "batchfree-audit-1"
    assert {*value} == {"ok", *(f.name for f in dataclasses.fields(report))}
    assert [f["module"] for f in value["findings"]] == [f.module for f in report.findings]
    assert value["modes"][1]["values"] == [list(row) for row in report.mode("train").values]
    assert value["sweep"][0]["size"] == 1


def test_numbers_that_json_lacks_are_words(report):
    odd = dataclasses.replace(
        report,
        findings=(Finding("coupling", "coupling", "1", "X", "train", math.inf, "grows", "none"),),
        modes=(Mode("train", True, False, (("1", math.nan),)),),
    )
    value = json.loads(odd.to_json())
    assert value["findings"][0]["amount"] == "inf"
    assert value["modes"][0]["entries"] == [["1", "nan"]]
    assert "<html" in odd.to_html()


def test_reports_are_frozen(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.samples = 3


def test_the_terminal_tells_the_verdict_and_what_to_do(report):
    text = str(report)
    assert "samples depend on each other in train mode; it enters at 2 modules" in text
    assert "1 (BatchNorm2d) and 1 more" in text
    assert "convert to GroupNorm with" in text
    clean = str(batchfree.audit(net(nn.GroupNorm(2, 8)), images()))
    assert "no sample depends on another in eval and train mode" in clean


def test_names_are_escaped_and_nothing_is_loaded(report):
    page = report.to_html()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    for reference in ("http://", "https://", "src=", "@import"):
        assert reference not in page


@pytest.fixture(scope="module")
def browser_page(report, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    path = tmp_path_factory.mktemp("page") / "audit.html"
    path.write_text(report.to_html())
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.told = []
        page.on("console", lambda message: page.told.append(message.text))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("request", lambda request: page.told.append(request.url))
        page.goto(path.as_uri())
        page.told.remove(path.as_uri())
        yield page
        browser.close()


def test_the_page_draws_and_says_nothing_on_the_console(browser_page):
    assert "samples depend on each other" in browser_page.inner_text("h1")
    heads = browser_page.eval_on_selector_all("h2", "all => all.map(h => h.textContent)")
    assert len(heads) >= 4
    # Of values in train mode: four samples, and the row and column of their numbers.
    sizes = browser_page.eval_on_selector_all(
        "table.heat", "all => all.map(t => [t.rows.length, t.rows[0].cells.length])"
    )
    assert [5, 5] in sizes
    assert browser_page.locator("svg").count() >= 1
    assert browser_page.told == []


def test_layers_are_sorted_by_a_click_and_by_the_keyboard(browser_page):
    table = browser_page.locator("table.sortable").last
    names = "rows => rows.map(r => r.cells[0].textContent)"
    before = table.locator("tbody tr").evaluate_all(names)
    assert before == ["1", "4", "5"]
    button = table.locator("th button").first
    button.click()
    assert table.locator("tbody tr").evaluate_all(names) == before
    button.focus()
    browser_page.keyboard.press("Enter")
    assert table.locator("tbody tr").evaluate_all(names) == before[::-1]
    assert table.locator("th").first.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_the_window(browser_page, width, scheme):
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.emulate_media(color_scheme=scheme)
    wide = browser_page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
