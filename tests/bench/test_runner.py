import time

import torch

from batchfree.bench import runner
from batchfree.bench.inputs import settings
from batchfree.bench.suites import Case, cases

PAIRS = [("tiny", case) for case in cases("tiny")[:2]]
PEERS = ("eager", "batchfree", "floor")


def run(some, peers=PEERS, **limits):
    rows = []
    left = runner.run_kernels(
        some, rows.append, peers=peers, limits=runner.Limits(repetitions=2, **limits)
    )
    return rows, left


def test_a_row_for_each_peer_of_each_setting():
    some = settings(PAIRS)
    found, left = run(some, threads=1)
    assert left == 0
    assert [[row.peer for row in rows] for rows in found] == [list(PEERS)] * len(some)
    for row in found[0]:
        assert row.failure is None
        assert row.threads == 1
        assert row.repetitions == 2
        assert row.p10_us <= row.median_us <= row.p90_us
        assert row.ratio > 0
        assert row.floors > 0
    eager, ours, floor = found[0]
    assert eager.ratio == floor.floors == 1
    assert eager.backend is None
    assert ours.backend


def test_a_peer_that_fails_is_reported_with_its_reason():
    one = settings([("s", Case("x", (1, 8, 1, 1), 4, "relu"))], modes=["forward"])
    (rows,), _ = run(one, ("eager", "batch_norm", "nothing"))
    assert rows[0].failure is None
    assert "more than 1 value per channel" in rows[1].failure
    assert rows[1].median_us is rows[1].ratio is None
    assert "no peer 'nothing'" in rows[2].failure


def test_inputs_that_do_not_fit_are_reported(monkeypatch):
    def full(setting):
        raise RuntimeError("not enough memory: you tried to allocate")

    monkeypatch.setattr(runner, "make_inputs", full)
    (rows,), _ = run(settings(PAIRS[:1], modes=["forward"]))
    assert all("not enough memory" in row.failure for row in rows)


def test_the_budget_leaves_settings_out():
    some = settings(PAIRS)
    assert run(some, budget=1e-9) == ([], len(some))

    def slow(rows):
        time.sleep(0.2)

    left = runner.run_kernels(some, slow, peers=PEERS, limits=runner.Limits(2, budget=0.15))
    assert 0 < left < len(some)


def test_threads_are_set_and_given_back():
    before = torch.get_num_threads()
    with runner.threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
