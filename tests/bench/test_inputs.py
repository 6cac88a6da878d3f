import pytest
import torch

from batchfree.bench.inputs import LAYOUTS, Setting, make_inputs, settings
from batchfree.bench.suites import Case

CASE = Case("x", (2, 8, 3, 5), 4, "relu", True)


def test_settings_are_the_product_without_layouts_that_there_are_not():
    flat = Case("x", (2, 8, 5), 4)
    found = settings([("s", CASE), ("s", flat)], dtypes=("float32", "bfloat16"), layouts=LAYOUTS)
    assert len(found) == 2 * 2 * 2 + 2 * 2
    assert {s.layout for s in found if s.case is flat} == {"contiguous"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameters", ["same", "float32"])
def test_inputs_have_dtype_layout_and_gradients(layout, parameters):
    setting = Setting("s", CASE, "bfloat16", layout, "forward+backward", parameters)
    found = make_inputs(setting)
    last = layout == "channels_last"
    for tensor in (found.x, found.residual, found.dy):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last) == last
    assert found.weight.dtype == (torch.float32 if parameters == "float32" else torch.bfloat16)
    assert len(found.leaves) == 4
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in found.leaves)
    assert torch.equal(found.x, make_inputs(setting).x)


def test_a_forward_wants_no_gradients():
    found = make_inputs(Setting("s", Case("x", (2, 8, 3), 4)))
    assert found.residual is None
    assert not any(leaf.requires_grad for leaf in found.leaves)


@pytest.mark.parametrize(
    ("activation", "residual", "forward", "both"),
    [("silu", False, 2, 5), ("relu", True, 3, 8), (None, False, 2, 5), (None, True, 3, 6)],
)
def test_the_floor_counts_each_input_and_output_once(activation, residual, forward, both):
    case = Case("x", (2, 8, 3, 5), 4, activation, residual)
    size = 2 * 8 * 3 * 5 * 2
    assert Setting("s", case, "float16").bytes == size
    assert Setting("s", case, "float16").floor_bytes == forward * size
    assert Setting("s", case, "float16", mode="forward+backward").floor_bytes == both * size
