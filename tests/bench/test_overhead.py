from batchfree.bench.overhead import MODES, SUBJECTS, run_overhead


def test_every_way_to_call_is_timed_in_every_mode():
    found = []
    run_overhead(found.append, repetitions=2, thread_count=1)
    assert [rows[0].mode for rows in found] == list(MODES)
    for rows in found:
        assert [row.subject for row in rows] == list(SUBJECTS)
        assert all(row.failure is None and row.median_us > 0 for row in rows)
        baselines = [row.subject for row in rows if row.ratio == row.ratio_p10 == 1]
        assert set(baselines) >= {"eager group_norm", "eager group_norm + relu"}
