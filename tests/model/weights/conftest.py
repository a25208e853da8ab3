"""The project's own kernels, once for each instruction set that they are written for."""

import pytest

from harness.core.cpu import KERNEL_SETS
from harness.model.weights import sparse_kernels
from harness.model.weights.compiled import library
from tests.kernels_here import require_compiled


@pytest.fixture(scope="session")
def kernel_sets():
    """The sets that this processor has, the simplest first."""
    require_compiled()
    return KERNEL_SETS[: library(sparse_kernels.SOURCE).block_sparse_level() + 1]


@pytest.fixture
def kernels(kernel_sets):
    """Those for the best set that may be used."""
    return [kernels for kernels in sparse_kernels.load() if not isinstance(kernels, str)][-1]


@pytest.fixture(params=KERNEL_SETS)
def isa(request, kernel_sets, monkeypatch):
    """An instruction set, with the kernels limited to it."""
    if request.param not in kernel_sets:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("HARNESS_ISA", request.param)
    return request.param
