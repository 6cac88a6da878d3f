import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from bench_rows import ORIGIN, kernel_row
from plotly.offline import get_plotlyjs

from batchfree._errors import ConfigError
from batchfree.bench.results import Bench, OverheadRow, StepRow, Timed
from batchfree.report import bench_words, write_bench_page
from batchfree.report.bench_charts import bench_charts, peer_style
from batchfree.report.bench_frame import ratio_text

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


def kernels(**changes):
    shapes = ((2, 320, 64, 64), (2, 640, 32, 32))
    return tuple(
        kernel_row(peer, shape=shape, mode=mode, layout=layout, bytes=size, **changes)
        for shape, size in zip(shapes, (10485760, 5242880), strict=True)
        for mode in ("forward", "forward+backward")
        for layout in ("contiguous", "channels_last")
        for peer in ("eager", "batchfree", "batch_norm", "floor")
    )


def timed(**changes):
    row = kernel_row("batchfree")
    return {name: getattr(row, name) for name in Timed.__dataclass_fields__} | changes


def overhead(subject, mode="forward", **changes):
    return OverheadRow(**timed(**changes), subject=subject, mode=mode, shape=(1, 32, 2, 2))


def step(model, **changes):
    fields = {"network": "resnet50", "batch": 4, "size": 224, "layout": "contiguous"}
    return StepRow(**timed(**changes), model=model, saved_bytes=300_000_000, **fields)


@pytest.fixture(scope="module")
def bench():
    calls = ("eager group_norm", "batchfree.group_norm", "eager batch_norm + relu")
    return Bench(
        ORIGIN,
        True,
        kernels(),
        tuple(
            overhead(subject, mode) for mode in ("forward", "forward+backward") for subject in calls
        ),
        (step("fused GN"), step("eager GN", ratio=1.0), step("BN")),
    )


def text_of(page):
    return page.read_text().replace(get_plotlyjs(), "")


def test_the_page_stands_alone_and_tells_what_was_found(bench, tmp_path):
    text = text_of(write_bench_page([bench], tmp_path / "out" / "bench.html"))
    assert "Speed against PyTorch eager: 4.00× forward, 4.00× forward and backward" in text
    for wanted in ("Synthetic CPU", "0123456789ab", "batchfree bench target", "malloc keep"):
        assert wanted in text
    assert not re.search(r"url\(|@import|https?://", text)
    assert text.count("The numbers of this figure") == 6
    assert "Read with care" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_plotly_accepts_every_figure(bench):
    charts = bench_charts([bench])
    assert [chart.key for chart in charts] == [
        *("speed-forward", "floor-forward", "speed-forward-backward", "floor-forward-backward"),
        *("overhead", "steps"),
    ]
    for chart in charts:
        for panel in chart.panels:
            text = json.dumps(panel.figure).replace("var(--font)", "Arial")
            assert go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", text))).data


def test_a_panel_for_each_layout_and_a_mark_for_each_case(bench):
    speed = bench_charts([bench])[0]
    assert [panel.title for panel in speed.panels] == ["contiguous", "channels_last"]
    assert list(speed.legend) == ["batchfree", "batch_norm", "floor"]
    ours = speed.panels[0].figure["data"][0]
    assert ours["y"] == [4.0, 4.0]
    assert "4.00× (3.60 to 4.40)" in ours["text"][0]
    assert speed.table.head[:4] == ("x", "Layout", "batchfree", "batch_norm")


def test_nothing_from_the_rows_is_markup(tmp_path):
    origin = replace(
        ORIGIN,
        command=EVIL,
        commit=EVIL,
        versions={EVIL: EVIL},
        machine={**ORIGIN.machine, EVIL: EVIL},
    )
    words = {"suite": EVIL, "case": EVIL, "dtype": EVIL, "peer": EVIL, "backend": EVIL}
    rows = tuple(replace(row, **words, allocator=EVIL) for row in kernels()[:2])
    failed = replace(rows[0], median_us=None, failure=EVIL)
    evil = Bench(
        origin,
        False,
        (*rows, failed),
        (overhead(EVIL, EVIL),),
        (replace(step("BN"), model=EVIL, network=EVIL, layout=EVIL),),
    )
    text = text_of(write_bench_page([evil], tmp_path / "bench.html"))
    assert text.count("<script") == 3
    assert "<img" not in text
    for chart in bench_charts([evil]):
        for panel in chart.panels:
            for trace in panel.figure["data"]:
                shown = [trace["name"], *trace["text"], *map(str, trace["y"])]
                assert not any("<script" in word or "<img" in word for word in shown)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_incomplete_rows_are_drawn_as_far_as_they_go(tmp_path, keep):
    part = Bench(ORIGIN, False, kernels()[:keep], (), ())
    text = text_of(write_bench_page([part], tmp_path / "bench.html"))
    assert "This benchmark is incomplete" in text
    assert ("Nothing has been timed yet" in text) == (keep < 2)


def test_cautions_name_what_failed_and_what_was_restless():
    rows = (
        kernel_row("eager", p90_us=5000.0),
        kernel_row("batchfree", backend="aten", repetitions=5),
        kernel_row("batch_norm", median_us=None, ratio=None, failure="RuntimeError: no"),
    )
    told = bench_words.cautions([Bench(ORIGIN, True, rows, (), ())])
    assert told[0] == "batch_norm failed 1 time: RuntimeError: no"
    assert "1 of 2 rows have fewer than 10 repetitions" in told[1]
    assert "in 1 of 2 rows the 90th percentile" in told[2]
    assert "PyTorch’s own kernels" in told[3]


def test_a_machine_that_was_busy_before_is_told():
    origin = replace(ORIGIN, machine={**ORIGIN.machine, "load before": 2.3})
    (told,) = bench_words.cautions([Bench(origin, True, kernels(), (), ())])
    assert "(load 2.3)" in told


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ({"steps": (step("fused GN"), step("eager GN"))}, "fused GN: 4.00× the speed of eager GN"),
        ({"overhead": (overhead("eager group_norm"),)}, "The host’s part of a call"),
        ({}, "Nothing has been timed yet"),
    ],
)
def test_the_headline_of_other_rows(rows, headline):
    one = Bench(ORIGIN, True, **{"kernels": (), "overhead": (), "steps": (), **rows})
    assert headline in bench_words.headline([one])


def test_backends_have_looks_of_their_own():
    peers = ["eager", "aten", "reference"]
    assert len({peer_style(peer, peers).key for peer in peers}) == 3


def test_ratios_have_three_digits():
    assert [ratio_text(value) for value in (0.5, 9.999, 12.34, 1234.5)] == [
        *("0.50×", "10.00×", "12.3×", "1,234×")
    ]


def test_no_benchmark_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        write_bench_page([], tmp_path / "bench.html")
