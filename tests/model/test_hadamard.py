"""Hadamard matrices by Paley's constructions, and their fast product with its count."""

import pytest
import torch

from harness.core.errors import MethodError
from harness.measure.audit import count_flops
from harness.model.hadamard import HadamardProduct, hadamard, random_orthogonal

ORDERS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 48, 52, 60, 68, 76, 84, 100, 108, 140, 148, 180, 192, 256, 576)


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal_and_entries_are_signs(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert matrix.abs().eq(1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 18, 30, 33, 92, 121])
def test_where_none_is_known_there_is_none(order: int) -> None:
    assert hadamard(order) is None
    with pytest.raises(MethodError, match=f"no Hadamard matrix of {order} rows is known here.*leave online=true out"):
        HadamardProduct(order)


@pytest.mark.parametrize("width", [1, 32, 33, 48, 92])
def test_a_random_matrix_is_orthogonal_and_follows_from_its_seed(width: int) -> None:
    matrix = random_orthogonal(width, 0)
    assert matrix.dtype == torch.float64
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.equal(matrix, random_orthogonal(width, 0))
    assert width == 1 or not torch.allclose(matrix, random_orthogonal(width, 1), atol=1e-3)
    if hadamard(width) is not None:
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, width**-0.5))


@pytest.mark.parametrize(
    ("width", "flops"), [(1, 0), (2, 2), (64, 64 * 6), (1024, 1024 * 10), (48, 48 * (2 + 24)), (40, 40 * (1 + 40))]
)
def test_the_fast_product_is_that_of_the_matrix_and_is_counted(width: int, flops: int) -> None:
    product, x = HadamardProduct(width), torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))
    y, counted = count_flops(lambda: product(x))
    eye = torch.eye(width, dtype=torch.float64)
    matrix = product(eye).T  # column by column
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, width**-0.5))
    assert torch.allclose(matrix @ matrix.T, eye, atol=1e-6)
    assert torch.allclose(y, (x.double() @ matrix.T).float(), atol=1e-5)
    assert counted == 6 * flops  # width log2(width) additions a token, and two FLOPs for each product with the core
    assert 2 * product.macs_per_token == flops


def test_half_precision_is_summed_in_float32() -> None:
    product, x = HadamardProduct(1024), torch.full((1, 1024), 256.0)
    y = product(x.half())
    assert (y.dtype, float(y[0, 0])) == (torch.float16, 8192.0)  # its sum, 262,144, is beyond float16
    assert not y[0, 1:].any()


def test_gradients_go_back_through_it() -> None:
    product, x = HadamardProduct(12), torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, x)


def test_shapes_are_known_without_values() -> None:
    product = HadamardProduct(48).to("meta")
    assert product(torch.empty(2, 5, 48, device="meta")).shape == (2, 5, 48)
