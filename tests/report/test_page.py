import builtins
import errno
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from batchfree._errors import ConfigError
from batchfree.report import write_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Seen(HTMLParser):
    """The elements of a page, what they link to, their ids, and whether they are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page: Path) -> str:
    """The page without Plotly's own source."""
    text = page.read_text()
    library = get_plotlyjs()
    assert text.count(library) <= 1
    return text.replace(library, "")


@pytest.fixture
def page(results, tmp_path):
    return write_report(results, tmp_path / "out" / "report.html", figures=False)


def test_the_page_stands_alone(page):
    seen = Seen(text_of(page))
    assert seen.open == []
    assert all(link.startswith(("#", "data:")) for link in seen.links)
    assert not re.search(r"url\(|@import|https?://", text_of(page))
    assert "default-src 'none'" in text_of(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert page.read_text().count(get_plotlyjs()) == 1


def test_the_page_tells_the_finding_and_keeps_the_two_tables_apart(page):
    text = text_of(page)
    assert "rises from 5.2% at normalisation batch 32 to 9.5% at 2" in text
    ours, theirs = (
        text.index('<span class="mine">Ours'),
        text.index('<span class="theirs">The paper'),
    )
    assert ours < text.index("9.3–9.7", ours) < theirs < text.index("34.7", theirs)
    assert "ResNet-50 on ImageNet" in text[theirs:]
    for wanted in ("What this does not show", "How these numbers were made", "Synthetic CPU"):
        assert wanted in text


def test_every_figure_has_words_numbers_and_origin(page):
    text = text_of(page)
    assert text.count('role="img"') == text.count('aria-label="Validation error') + 1 == 7
    assert text.count("The numbers of this figure") == 3
    assert text.count("The runs behind this figure") == 3


def test_the_protocol_is_told(results, page, tmp_path):
    other = write_report(replace(results, protocol="paper"), tmp_path / "p.html", figures=False)
    assert "isolated protocol" in text_of(page)
    assert "paper protocol" in text_of(other)
    assert "simulated worker" in text_of(other)


def test_nothing_from_the_rows_is_markup(results, make_row, tmp_path):
    row = make_row(
        EVIL,
        None,
        1,
        5.0,
        command=EVIL,
        commit=EVIL,
        versions={EVIL: EVIL},
        machine={"cpu": EVIL, "cores": 1, "system": EVIL, EVIL: EVIL},
        config={EVIL: {EVIL: EVIL}},
    )
    evil = replace(results, rows=(row,), preset=EVIL, command=EVIL)
    text = text_of(write_report(evil, tmp_path / "report.html"))
    seen = Seen(text)
    assert seen.open == []
    assert seen.tags.count("script") == 3
    assert "img" not in seen.tags
    assert "{{ 7 * 7 }}" in text


def test_broken_unicode_is_written(results, tmp_path):
    odd = replace(results, command="batchfree \udcff demo")
    assert write_report(odd, tmp_path / "report.html", figures=False).read_text(encoding="utf-8")


def test_static_figures_stand_beside_the_page(results, tmp_path):
    write_report([results, replace(results, rows=())], tmp_path / "r.html")
    assert sorted(os.listdir(tmp_path)) == [
        "r-curves.png",
        "r-curves.svg",
        "r-summary.png",
        "r-summary.svg",
        "r.html",
    ]
    assert (tmp_path / "r-summary.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("keep", [0, 1, 2, 4, 16])
def test_incomplete_results_are_drawn_as_far_as_they_go(results, tmp_path, keep):
    part = replace(results, rows=results.rows[:keep])
    text = text_of(write_report(part, tmp_path / "report.html", figures=False))
    assert "This report is incomplete" in text
    assert ("No run has finished yet" in text) == (keep == 0)
    assert ('class="plot"' in text) == (keep > 0)
    assert Seen(text).open == []


def test_a_complete_sweep_of_one_seed_asks_for_care_only(results, tmp_path):
    single = replace(results, rows=tuple(row for row in results.rows if row.seed == 1))
    text = text_of(write_report(single, tmp_path / "report.html", figures=False))
    assert "Read with care" in text
    assert "incomplete" not in text
    assert "One seed." in text


def test_several_results_stand_one_under_the_other(results, tmp_path):
    page = write_report(
        [results, replace(results, preset="second")], tmp_path / "r.html", figures=False
    )
    text = text_of(page)
    assert text.count("<article") == 2
    assert text.count("<h1") == 1
    assert len(Seen(text).ids) == len(set(Seen(text).ids))


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        write_report([], tmp_path / "report.html")


def test_a_page_that_cannot_be_written_is_a_clear_error(results, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"choose another .*file/report\.html"):
        write_report(results, tmp_path / "file" / "report.html", figures=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    page = write_report(results, tmp_path / "report.html", figures=False)
    before = page.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="free some space"):
        write_report(replace(results, rows=()), page, figures=False)
    assert page.read_bytes() == before


@pytest.mark.parametrize("library", ["plotly", "jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_remedy(results, tmp_path, monkeypatch, library):
    def without(name, *args, **kwargs):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    for name in ("page", "figures_static", "templating"):
        monkeypatch.delitem(sys.modules, f"batchfree.report.{name}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf'needs {library}.*pip install "batchfree\[report\]"'):
        write_report(results, tmp_path / "report.html")
