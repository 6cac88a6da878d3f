"""The tests, for each backend and for each way that a backend has to compute the same."""

import pytest
import torch
from fused_cases import BACKEND, DEVICE
from group_norm_cases import CHOICES
from triton_paths import PATHS, limits

import batchfree


@pytest.fixture(params=PATHS if BACKEND == "triton" else ["chosen"])
def path(request):
    """How the kernels under test go about a call."""
    if BACKEND != "triton":
        yield
        return
    before = torch.get_default_device()
    torch.set_default_device(DEVICE)
    with limits(PATHS[request.param]):
        yield
    torch.set_default_device(before)


@pytest.fixture(params=list(CHOICES))
def any_backend(request):
    with batchfree.backend(CHOICES[request.param]):
        yield request.param
