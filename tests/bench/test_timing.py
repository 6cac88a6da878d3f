import gc
import time

import pytest

from batchfree.bench import timing
from batchfree.bench.timing import Samples, interleave, ratios, spread


def test_functions_run_in_turns_in_an_order_that_rotates():
    order = []
    functions = {name: (lambda n, name=name: order.append((name, n))) for name in "abc"}
    found = interleave(functions, repetitions=4, sample_us=0)
    assert [name for name, _ in order[-12:]] == list("abcbcacababc")
    assert all(len(samples.times) == 4 for samples in found.values())


def test_of_no_functions_there_are_no_samples():
    assert interleave({}, repetitions=2) == {}


def test_short_calls_are_repeated_within_a_sample():
    calls = []
    found = interleave({"a": lambda n: (calls.append(n), time.sleep(n * 1e-5))}, repetitions=2)
    assert 1 < found["a"].calls < 100
    assert calls[-1] == found["a"].calls
    assert found["a"].times[0] < 1e4


@pytest.mark.parametrize("calls_before", [0, 5])
def test_a_function_that_raises_is_reported_and_the_others_go_on(calls_before):
    left = [calls_before]

    def fails(n):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("no\n compiler")
        time.sleep(0.04)

    found = interleave({"bad": fails, "good": lambda n: time.sleep(1e-3)}, repetitions=6)
    assert found["bad"].failure == "RuntimeError: no compiler"
    assert len(found["good"].times) == 6
    assert ratios(found["good"], found["bad"]) is None


def test_garbage_is_not_collected_meanwhile():
    seen = []
    interleave({"a": lambda n: seen.append(gc.isenabled())}, repetitions=1, sample_us=0)
    assert seen[-1] is False
    assert gc.isenabled()


def test_ctrl_c_passes_and_garbage_is_collected_again():
    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave({"a": stop}, repetitions=1)
    assert gc.isenabled()


def test_seconds_end_the_repetitions_but_not_before_a_few():
    found = interleave({"a": lambda n: time.sleep(1e-3)}, repetitions=1000, seconds=0.0)
    assert len(found["a"].times) == timing.LEAST_REPETITIONS


def test_spread_and_ratios():
    assert spread([3.0]) == timing.Spread(3.0, 3.0, 3.0)
    assert spread([float(n) for n in range(11)]) == timing.Spread(5.0, 1.0, 9.0)
    found = ratios(Samples([2.0, 30.0, 4.0]), Samples([1.0, 10.0, 2.0]))
    assert found.median == 2.0
