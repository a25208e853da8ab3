"""Orthogonal matrices that spread what stands out: Hadamard matrices with random signs, and their fast product.

A Hadamard matrix has entries of 1 and -1 and orthogonal rows. There is one of 2^k m rows for each m of Paley's two
constructions: m = q + 1 for q = 3 (mod 4) and m = 2 (q + 1) for q = 1 (mod 4), with q a prime or a prime's square (12,
20, 28, 36, 44, 52, 60, 68, 76, 84, 100, ...). A vector of n = 2^k m numbers is multiplied by it in n k additions, and
n m multiplications where m > 1.

Sources: "On orthogonal matrices", Paley, J. Math. Phys. 12 (1933); QuaRot (arXiv:2404.00456) for the random signs.
"""

from functools import cache
from math import isqrt, prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from harness.core.errors import MethodError

_LARGEST = 512
"""Rows of the part that is no power of two: beyond it the fast product is none."""


@cache
def hadamard(order: int) -> torch.Tensor | None:
    """A Hadamard matrix, float64 [order, order]; None where none of that order is known here."""
    core = _core(order)
    if core is None:
        return None
    matrix = core
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def random_orthogonal(width: int, seed: int) -> torch.Tensor:
    """An orthogonal matrix, float64 [width, width]: Hadamard with random signs, else uniform over all (Haar)."""
    generator = torch.Generator().manual_seed(seed)
    matrix = hadamard(width)
    if matrix is None:
        draws = torch.randn(width, width, generator=generator, dtype=torch.float64)
        columns, upper = torch.linalg.qr(draws)
        uniform: torch.Tensor = columns * upper.diagonal().sign()
        return uniform
    signs = 2 * torch.randint(2, (width, 1), generator=generator) - 1
    turned: torch.Tensor = signs * matrix / width**0.5
    return turned


class HadamardProduct(nn.Module):
    """The product of each token with an orthonormal Hadamard matrix, as it comes.

    Attributes:
        macs_per_token: an addition counts as half of a multiply-accumulate.

    Raises:
        MethodError: no Hadamard matrix of that width is known here.
    """

    core: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        core = _core(width)
        if core is None:
            raise MethodError(
                f"no Hadamard matrix of {width} rows is known here, so that inputs of that width cannot be turned as "
                "they come: leave online=true out"
            )
        self.register_buffer("core", (core / width**0.5).float())
        self.macs_per_token = _flops(width, len(core)) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., width] to [..., width], in the type of the input; sums are of float32 at least."""
        y: torch.Tensor = torch.ops.harness.hadamard(x, self.core)
        return y


def _flops(width: int, rows: int) -> int:
    """FLOPs of one token: width log2(width) additions where the core has one row."""
    return width * ((width // rows).bit_length() - 1 + (2 * rows if rows > 1 else 0))


@torch.library.custom_op("harness::hadamard", mutates_args=())
def _hadamard(x: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Tokens [..., m 2^k] times the Kronecker product of the core [m, m], which is scaled, and Sylvester's matrix."""
    rows = len(core)
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = x.to(dtype).reshape(-1, rows, x.shape[-1] // rows)  # [tokens, m, 2^k]
    half = 1
    while half < y.shape[-1]:
        pairs = y.view(*y.shape[:2], -1, 2, half)  # neighbouring blocks of half
        first, second = pairs.unbind(3)
        y = torch.stack([first + second, first - second], 3).view_as(y)
        half *= 2
    return (core.to(dtype) @ y).to(x.dtype).reshape(x.shape)


@_hadamard.register_fake
def _like(x: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.core = inputs[1]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.ops.harness.hadamard(gradient, ctx.core.T), None  # Sylvester's matrix is symmetric


_hadamard.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.harness.hadamard)
def _counted(x: tuple[int, ...], core: tuple[int, ...], *_: Any, **__: Any) -> int:
    return prod(x[:-1]) * _flops(x[-1], core[0])


@cache
def _core(order: int) -> torch.Tensor | None:
    """The Hadamard matrix [m, m] of the least m with order = 2^k m; None where none is known."""
    rows = order & -order  # the largest power of two that divides it
    if rows == order:
        return torch.ones(1, 1, dtype=torch.float64)
    sizes = sorted(order // (1 << power) for power in range(rows.bit_length()))
    known = (_paley(size) for size in sizes if size % 4 == 0 and size <= _LARGEST)
    return next((matrix for matrix in known if matrix is not None), None)


def _paley(order: int) -> torch.Tensor | None:
    """A Hadamard matrix by one of Paley's constructions, float64 [order, order]; None where neither gives it.

    Args:
        order: a multiple of 4.
    """
    if (characters := _characters(order - 1)) is not None:  # order - 1 = 3 (mod 4)
        bordered = torch.ones(order, order, dtype=torch.float64)
        bordered[1:, 0], bordered[1:, 1:], bordered[0, 0] = -1, characters, 0
        return bordered + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if (half - 1) % 4 == 1 and (characters := _characters(half - 1)) is not None:
        bordered = torch.ones(half, half, dtype=torch.float64)
        bordered[1:, 1:], bordered[0, 0] = characters, 0
        plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        return torch.kron(bordered, plus.double()) + torch.kron(torch.eye(half).double(), minus.double())
    return None


def _characters(field: int) -> torch.Tensor | None:
    """chi(a - b) for all a, b of a field of p or p^2 elements, [field, field]: 1 of squares, -1 of others, 0 of 0.

    An element a + b sqrt(n) of p^2 is a square where its norm a^2 - n b^2 is one in the field of p.
    """
    prime = isqrt(field) if isqrt(field) ** 2 == field else field
    if prime < 3 or any(prime % divisor == 0 for divisor in range(2, isqrt(prime) + 1)):
        return None
    numbers = torch.arange(prime)
    legendre = -torch.ones(prime, dtype=torch.float64)
    legendre[numbers**2 % prime] = 1
    legendre[0] = 0
    if prime == field:
        return legendre[(numbers[:, None] - numbers) % prime]
    other = int((legendre < 0).nonzero()[0])
    first, second = torch.arange(field) // prime, torch.arange(field) % prime
    real, imaginary = first[:, None] - first, second[:, None] - second
    return legendre[(real**2 - other * imaginary**2) % prime]
