"""The tests of the fused kernels, for each way that the backend has to compute the same."""

import pytest
import torch
from fused_cases import BACKEND, DEVICE
from triton_paths import PATHS, limits


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
