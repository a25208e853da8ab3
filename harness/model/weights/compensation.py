"""Change a weight column by column, and let the columns that are still to come make up for the error of each.

Optimal brain surgery for one linear layer, in the form of GPTQ and SparseGPT (arXiv:2210.17323, arXiv:2301.00774). The
squared error of the outputs is a quadratic form of the Hessian H = (2/n) sum x x^T, the same for all rows of the
weight, and the Cholesky factor of its inverse says how much each later column takes over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from harness.core.errors import MethodError

DAMPING: Final = 0.01
BLOCK: Final = 128
"""Columns after which the others are brought up to date, so that most of the work is in large products."""


@dataclass(frozen=True)
class Hessian:
    """A Hessian that has an inverse.

    Attributes:
        damped: H with a share of its mean diagonal added to the diagonal, [in, in].
        upper: the upper triangular U of its inverse, U^T U, [in, in].
        dead: inputs that were never other than zero, bool [in]; their diagonal counts as one.
        damping: that share: 0.01, or ten times that as often as it took until the matrix could be factorised.
    """

    damped: torch.Tensor
    upper: torch.Tensor
    dead: torch.Tensor
    damping: float

    @classmethod
    def of(cls, gram: torch.Tensor) -> "Hessian":
        """Damp and factorise second moments of inputs, double [in, in].

        Raises:
            MethodError: even the whole mean diagonal makes it no positive definite matrix.
        """
        dead = gram.diagonal() == 0
        hessian = gram + torch.diag(dead.to(gram.dtype))
        damping = DAMPING
        while damping <= 1:
            damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype).to(gram)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return cls(damped, upper, dead, damping)
            damping *= 10
        raise MethodError("the second moments of the inputs are no positive definite matrix, however they are damped")

    def error(self, change: torch.Tensor) -> float:
        """The squared error of the outputs, tr(D H D^T), where a weight [out, in] changes by D."""
        return float(((change @ self.damped.to(change.dtype)) * change).sum())


def compensated(
    weight: torch.Tensor, hessian: Hessian, value: Callable[[int, torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """A weight whose columns have been given other values, one after the other.

    Args:
        weight: [out, in]; the precision of the work is its own.
        value: gives the values [out] of a column, by its number and the weight as it is then; the columns from there to
            the end of its block of ``BLOCK`` have made up for those before.

    Returns:
        The new weight Q, and the squared error that it leaves, tr((W - Q) H (W - Q)^T), of W without its dead columns.
    """
    weight = weight.masked_fill(hessian.dead, 0)
    upper, inputs, error = hessian.upper.to(weight.dtype), weight.shape[1], 0.0
    new = torch.empty_like(weight)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = weight.new_empty(len(weight), end - start)  # [out, block]
        for column in range(start, end):
            new[:, column] = value(column, weight)
            missing = (weight[:, column] - new[:, column]) / upper[column, column]  # [out]
            weight[:, column:end] -= missing[:, None] * upper[column, column:end]
            errors[:, column - start] = missing
        weight[:, end:] -= errors @ upper[start:end, end:]
        error += float(errors.double().square().sum())
    return new, error
