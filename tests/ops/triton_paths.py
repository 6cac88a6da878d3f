"""The ways in which the Triton kernels compute the same, forced by the limits of their plans."""

from contextlib import contextmanager

# Of the Triton kernels, forced on tensors that would be served in another way.
SMALL = dict(resident_forward=0, resident_backward=0, tile=64, pieces=1)
SMALL |= dict(steps_forward=3, steps_backward=3)
PATHS = {
    "chosen": {},
    "pieces": SMALL | dict(cache=1 << 60),
    "interleaved": SMALL | dict(cache=0, lagging=1 << 60, in_flight=5),
}


@contextmanager
def limits(changes):
    """Other limits of the Triton kernels' plans inside of the block."""
    from batchfree.ops.triton import backward, forward, plan

    before = plan.LIMITS
    try:
        plan.LIMITS = plan.with_limits(**changes)
        forward._plan_forward.cache_clear()
        backward._plan_backward.cache_clear()
        yield
    finally:
        plan.LIMITS = before
        forward._plan_forward.cache_clear()
        backward._plan_backward.cache_clear()
