"""The page of a detection experiment: alone, escaped, with its pictures, drawn in a browser."""

import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from detection_rows import (
    FINAL,
    backbone_row,
    detection_row,
    detections,
    diverged_row,
    results,
)
from PIL import Image
from plotly.offline import get_plotlyjs

from batchfree._errors import ConfigError, ResultsError
from batchfree.experiments.detection_results import Arm, DetectionResults
from batchfree.experiments.paper import COCO_FINE_TUNED, COCO_SCRATCH
from batchfree.report import detection_series as series
from batchfree.report import write_detection_report
from batchfree.report.detection_charts import detection_charts
from batchfree.report.detection_tables import category_table, our_table, paper_table, runs_table
from batchfree.report.figures_plotly import plotly_figures
from batchfree.report.pictures import picture_grid

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
GN = Arm("gn", "gn", "scratch", 2)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def page_text(tmp_path, *found):
    page = write_detection_report(found, tmp_path / "report.html", figures=False)
    return page.read_text().replace(get_plotlyjs(), "")


@pytest.mark.parametrize("experiment", ["detection", "scratch"])
def test_the_page_stands_alone_with_every_part(tmp_path, experiment):
    text = page_text(tmp_path, results(experiment))
    bare = re.sub(r"data:image/png;base64,[\w+/=]+", "data:", text)
    assert not re.search(r"url\(|@import|https?://", bare)
    assert "default-src 'none'" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for part in (
        *("Average precision during training", "Beside the paper", "What each of them sees"),
        *("How these numbers were made", "What this does not show", "Synthetic CPU"),
        *("The numbers of this figure", "By digit", "Every run"),
    ):
        assert part in text, part
    assert ("whose backbones the fine-tuned detectors start from" in text) == (
        experiment == "detection"
    )


def test_there_is_a_picture_of_every_scene_under_every_norm_and_of_what_is_there(tmp_path):
    found = results()
    text = page_text(tmp_path, found)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', text)
    assert len(pictures) == len(found.scenes) * (1 + len(FINAL["detection"]))
    images = [Image.open(io.BytesIO(base64.b64decode(content))) for content, _ in pictures]
    assert {image.size for image in images} == {(256, 256)}
    words = [alt for _, alt in pictures]
    assert words[0].startswith("Scene 1, What is there: ")
    assert "(0.91)" in words[1]
    missed = words[4]
    assert missed.startswith("Scene 1, BN*, BN heads: ")
    assert missed.count("(") < words[1].count("(")


def test_pictures_show_what_was_detected_and_nothing_where_nothing_was():
    (scene,) = results("scratch").scenes[:1]
    seen = detection_row(GN, 0, 50.0, detections=tuple(detections(1, 1.0)))
    blind = detection_row(Arm("bn", "bn", "scratch", 2), 0, 50.0, detections=())
    failed = diverged_row(Arm("ln", "ln", "scratch", 2), 0)
    rows = (seen, blind, failed)
    grid = picture_grid(
        results("scratch", planned=tuple(r.name for r in rows), rows=rows, scenes=(scene,))
    )
    (truth, first, second, third) = grid.rows[0][1]
    assert truth.source == first.source  # all of it was found
    assert second.words == "nothing found"
    assert second.source != first.source
    assert third.source == second.source
    assert third.words.startswith("diverged at step 7")


def test_a_scene_that_has_changed_since_is_left_out_and_counted(tmp_path):
    found = results()
    changed = replace(found.scenes[0], sha256="0" * 64)
    text = page_text(tmp_path, replace(found, scenes=(changed, *found.scenes[1:])))
    assert "1 scene left out" in text
    assert "Scene 1, " not in text
    assert "Scene 2, " in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentation": {"size": [8, 8], "counts": "02"}}, "for an image of 128 x 128"),
        ({"segmentation": {"size": [128, 128], "counts": "~~~~"}}, "cannot be read|counts|pixels"),
        ({"category_id": 99}, "category 99, which the scenes do not have"),
    ],
)
def test_a_detection_that_does_not_fit_its_scene_is_named(change, words):
    damaged = replace(detections(1, 1.0)[0], **change)
    row = detection_row(GN, 0, 50.0, detections=(damaged,))
    with pytest.raises(ResultsError, match=words) as caught:
        picture_grid(results("scratch", rows=(row,)))
    assert "gn-scratch-2-seed0: a detection in scene 1" in str(caught.value)
    assert "delete it" in str(caught.value)


def test_nothing_from_the_rows_is_markup(tmp_path):
    arm = Arm(EVIL, EVIL, "scratch", 2)
    row = detection_row(
        arm, 0, 50.0,
        command=EVIL, commit=EVIL, versions={EVIL: EVIL}, config={EVIL: {EVIL: EVIL}},
        machine={"cpu": EVIL, "cores": 1, "system": EVIL, EVIL: EVIL},
        per_category={"box": {EVIL: 3.0}, "mask": {}},
    )  # fmt: skip
    failed = replace(diverged_row(arm, 1), failure=EVIL)
    evil = results(
        preset=EVIL, command=EVIL, planned=(row.name, failed.name, EVIL), rows=(row, failed),
        backbones=(replace(backbone_row("bn", 0), norm=EVIL),),
    )  # fmt: skip
    text = page_text(tmp_path, evil)
    assert text.count("<script") == 3
    assert text.count("<img") == 2 * len(evil.scenes)
    for chart in detection_charts(evil):
        for figure in plotly_figures(chart):
            for trace in figure["data"]:
                shown = [trace.get("name", ""), *trace.get("text", [])]
                assert not any("<script" in word or "<img" in word for word in shown)


@pytest.mark.parametrize("experiment", ["detection", "scratch"])
def test_curves_are_drawn_over_images_with_bands_and_looks_of_their_own(experiment):
    (chart,) = detection_charts(results(experiment))
    assert [panel.title for panel in chart.panels] == ["Boxes", "Masks"]
    for panel in chart.panels:
        assert len(panel.lines) == len(FINAL[experiment])
        looks = {(line.style.light, line.style.dash) for line in panel.lines}
        assert len(looks) == len(panel.lines)
        for line in panel.lines:
            assert line.x == (1000, 2000, 3000, 4000, 5000, 6000)
            assert all(low < high for low, high in zip(line.low, line.high, strict=True))
    for figure in plotly_figures(chart):
        text = json.dumps(figure).replace("var(--font)", "Arial")
        assert go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", text))).data
        assert figure["layout"]["xaxis"]["unifiedhovertitle"]["text"] == "%{x:,} images"


def test_our_table_has_means_ranges_and_what_diverged():
    rows = (detection_row(GN, 0, 50.0), detection_row(GN, 1, 51.0), diverged_row(GN, 2))
    bn = Arm("bn", "bn", "scratch", 2)
    found = results("scratch", planned=(*(r.name for r in rows), f"{bn.name}-seed0"),
                    rows=(*rows, diverged_row(bn, 0)))  # fmt: skip
    first, second = our_table(found).rows
    assert first[0].text == "GN, batch 2"
    assert (first[1].text, first[1].notes) == ("50.8", ("50.0–51.5", "1 diverged"))
    assert (second[1].text, second[1].notes) == ("diverged", ("1 diverged",))
    ends = [row[-1].text for row in runs_table(found).rows]
    assert ends[:2] == ["finished", "finished"]
    assert ends[2].startswith("diverged at step 7")
    assert category_table(found).rows[0][1].text == "50.8"


def test_the_papers_tables_are_those_of_the_paper():
    cells = {row[0].text: [entry.text for entry in row[1:3]] for row in paper_table(
        COCO_FINE_TUNED).rows}  # fmt: skip
    assert cells["GN"] == ["40.3", "35.7"]
    assert cells["BN*"] == ["38.6", "34.5"]
    assert cells["BN*, GN box head"] == ["39.5", "34.4"]
    assert cells["BN*, BN box head"] == ["–", "–"]
    assert paper_table(COCO_SCRATCH).rows[0][1].text == "39.5"


def test_diverged_and_unfinished_runs_average_with_no_other():
    rows = (detection_row(GN, 0, 50.0), diverged_row(GN, 1))
    found = results("scratch", planned=tuple(r.name for r in rows), rows=rows)
    assert series.cell(found, GN).seeds == (0,)
    assert series.curve(series.rows_of(found, GN), "box_AP").seeds == (0,)
    short = detection_row(GN, 1, 50.0, curve=detection_row(GN, 1, 50.0).curve[:3])
    assert series.curve([rows[0], short], "box_AP").images == (1000, 2000, 3000)
    assert series.curve([diverged_row(GN, 0)], "box_AP") is None


def test_without_rows_the_page_says_so(tmp_path):
    text = page_text(tmp_path, results(rows=()))
    assert "No run has finished yet." in text
    assert "12 of 12 runs have not finished" in text
    with pytest.raises(ConfigError, match="at least one"):
        write_detection_report([], tmp_path / "report.html")


def test_several_experiments_stand_on_one_page_with_their_figures(tmp_path):
    page = write_detection_report(
        [results("detection"), results("scratch")], tmp_path / "out" / "report.html"
    )
    assert page.read_text().count("<article") == 2
    assert sorted(p.name for p in page.parent.iterdir() if p != page) == [
        *("report-2-curves.png", "report-2-curves.svg"),
        *("report-curves.png", "report-curves.svg"),
    ]


def test_results_come_back_as_they_were():
    found = results()
    assert DetectionResults.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: set CHROMIUM to its path")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_is_drawn_quietly_and_fits_the_screen(tmp_path, scheme, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    url = write_detection_report([results()], tmp_path / "r.html", figures=False).as_uri()
    problems = []
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        lines = "document.querySelectorAll('.plot .js-line').length"
        for _ in range(100):
            if page.evaluate(lines) >= 2 * 6:
                break
            page.wait_for_timeout(100)
        assert page.evaluate(lines) >= 2 * 6
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.images].every(image => image.naturalWidth === 256)")
        browser.close()
    assert problems == []
