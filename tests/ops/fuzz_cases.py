"""Random calls of group_norm for test_fuzz.py: shapes, dtypes, and how tensors lie in memory."""

from dataclasses import dataclass

import torch
from fused_cases import DEVICE, DTYPES, INTERPRETED, Inputs
from hypothesis import strategies as st
from oracle import ACTIVATIONS

# Elements of a sample: many leaves, and more than one thread's least share.
LARGEST = 800 if INTERPRETED else 20000


@dataclass(frozen=True)
class Placement:
    """How a tensor lies in memory. Gaps hold NaN, which shows where one is read."""

    order: tuple[int, ...]  # dimensions from the outermost to the innermost
    steps: dict[int, int]  # every so many of a larger tensor's indices
    lead: int  # elements before the first
    expanded: frozenset[int]  # dimensions of stride 0

    def place(self, t):
        """A view of t's shape; of expanded dimensions the first index, for all."""
        shape = t.shape
        for d in self.expanded:
            t = t[(slice(None),) * d + (slice(0, 1),)]
        steps = [self.steps.get(d, 1) for d in self.order]
        t = t.permute(self.order)
        room = [size * step for size, step in zip(t.shape, steps, strict=True)]
        memory = t.new_full((self.lead + torch.Size(room).numel(),), float("nan"))
        view = memory[self.lead :].view(room)[tuple(slice(None, None, step) for step in steps)]
        view.copy_(t)
        return view.permute([self.order.index(d) for d in range(len(shape))]).expand(shape)


@dataclass(frozen=True)
class Call:
    """A call of group_norm and of its gradient, written out from a seed."""

    shape: tuple[int, ...]
    num_groups: int
    dtype: torch.dtype
    activation: str | None
    eps: float
    scale: float  # of x
    shift: float
    weight: torch.dtype | None
    bias: torch.dtype | None
    residual: bool
    places: tuple[Placement, ...]  # of x, residual, dy
    parameter_places: tuple[Placement, ...]
    needs: tuple[bool, ...]  # a gradient: x, weight, bias, residual
    threads: int
    seed: int

    def inputs(self):
        """The tensors, without gradients."""
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def normal(size, place, dtype, scale=1.0, shift=0.0):
            values = torch.randn(size, generator=generator, device="cpu") * scale + shift
            return None if dtype is None else place.place(values.to(DEVICE, dtype))

        shape, (c,) = self.shape, self.shape[1:2]
        x, residual, dy = self.places
        weight, bias = self.parameter_places
        return Inputs(
            normal(shape, x, self.dtype, self.scale, self.shift),
            normal((c,), weight, self.weight, 1, 1),
            normal((c,), bias, self.bias),
            normal(shape, residual, self.dtype if self.residual else None),
            normal(shape, dy, self.dtype),
        )


# Strategies are made once: making them costs more than drawing from them.
GROUPS = st.integers(1, 8) | st.just(32)
SIZES = st.integers(1, 9) | st.integers(1, LARGEST)
SPATIAL = st.lists(SIZES, max_size=3)


@st.composite
def shapes(draw):
    """(N, C, *) of rank 2 to 5, and a number of groups."""
    groups = draw(GROUPS)
    shape = [draw(st.integers(0, 5)), groups * draw(st.integers(1, 12))]
    room = LARGEST // shape[1]
    for size in draw(SPATIAL):
        shape.append(min(size, room))
        room //= shape[-1]
    return tuple(shape), groups


def placements(rank):
    """Contiguous, channels last or any order; whole or of a larger tensor; expanded or not."""
    first = tuple(range(rank))
    orders = st.sampled_from([first, (0, *first[2:], *first[1:2])]) | st.permutations(first)
    dims = st.sampled_from(first)
    return st.builds(
        Placement,
        order=orders.map(tuple),
        steps=st.just({}) | st.dictionaries(dims, st.integers(2, 3), max_size=2),
        lead=st.just(0) | st.integers(0, 9),
        expanded=st.just(frozenset()) | st.frozensets(dims),
    )


PLACES = {rank: st.tuples(*[placements(rank)] * 3) for rank in range(2, 6)}
PARAMETER_PLACES = st.tuples(*[placements(1)] * 2)
PARAMETER_DTYPES = {dtype: st.sampled_from([None, dtype, torch.float32]) for dtype in DTYPES}
REST = st.fixed_dictionaries(
    dict(
        activation=st.sampled_from(list(ACTIVATIONS)),
        eps=st.sampled_from([1e-5, 1e-3, 1e-6]),
        scale=st.sampled_from([1.0, 0.01, 100.0]),
        shift=st.sampled_from([0.0, 0.3, -30.0, 1000.0]),
        residual=st.booleans(),
        parameter_places=PARAMETER_PLACES,
        needs=st.tuples(*[st.booleans()] * 4),
        threads=st.integers(1, 3),
        seed=st.integers(0, 2**31),
    )
)


@st.composite
def calls(draw, smallest_batch=0):
    """Every way to call group_norm that its contract allows and the kernels serve."""
    shape, num_groups = draw(shapes())
    dtype = draw(st.sampled_from(DTYPES))
    return Call(
        (max(shape[0], smallest_batch), *shape[1:]),
        num_groups,
        dtype,
        weight=draw(PARAMETER_DTYPES[dtype]),
        bias=draw(PARAMETER_DTYPES[dtype]),
        places=draw(PLACES[len(shape)]),
        **draw(REST),
    )
