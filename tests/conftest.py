from importlib import import_module

import pytest
import torch

# By name: the package re-exports functions of the same names as these modules.
group_norm_module = import_module("batchfree.ops.group_norm")


@pytest.fixture(autouse=True)
def _one_thread_and_fresh_state():
    """Tests share two cores, and a warning that is said once is due again in each test."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    group_norm_module._warned_degenerate = False


@pytest.fixture
def nan_memory():
    """Uninitialised memory reads as NaN, so that an element left unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
