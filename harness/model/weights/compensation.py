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
        dead: inputs that were never other than zero, bool [in]; their diagonal counts as one. Where all were, nothing
            is known of them, and none is dead.
        damping: that share: 0.01, or ten times that as often as it took until the matrix could be factorised.
        order: the inputs in the order in which all of these have them, [in]; None: as they are.
    """

    damped: torch.Tensor
    upper: torch.Tensor
    dead: torch.Tensor
    damping: float
    order: torch.Tensor | None = None

    @classmethod
    def of(cls, gram: torch.Tensor, *, largest_first: bool = False) -> "Hessian":
        """Damp and factorise second moments of inputs, double [in, in].

        Args:
            largest_first: order the inputs by their second moments, the largest first (GPTQ's ``act_order``).

        Raises:
            MethodError: even the whole mean diagonal makes it no positive definite matrix.
        """
        order = gram.diagonal().argsort(descending=True, stable=True) if largest_first else None
        hessian = gram.clone() if order is None else gram[order][:, order]
        diagonal = hessian.diagonal()  # [in], a view
        dead = diagonal == 0
        diagonal += dead
        mean, damping, added = float(diagonal.mean()), DAMPING, 0.0
        while damping <= 1:
            diagonal += damping * mean - added
            added = damping * mean
            lower, failed = torch.linalg.cholesky_ex(hessian)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                del lower  # of thousands of inputs each of these takes hundreds of megabytes
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return cls(hessian, upper, dead & ~dead.all(), damping, order)
            damping *= 10
        raise MethodError("the second moments of the inputs are no positive definite matrix, however they are damped")

    def error(self, change: torch.Tensor) -> float:
        """The squared error of the outputs, tr(D H D^T), where a weight [out, in] changes by D."""
        change = change if self.order is None else change[:, self.order]
        return float(((change @ self.damped.to(change.dtype)) * change).sum())


def compensated(
    weight: torch.Tensor,
    hessian: Hessian,
    value: Callable[[int, torch.Tensor], torch.Tensor],
    block: int = BLOCK,
) -> tuple[torch.Tensor, float]:
    """A weight whose columns have been given other values, one after the other.

    Args:
        weight: [out, in]; the precision of the work is its own.
        value: gives the values [out] of a column, by its number in the Hessian's order and the weight in that order as
            it is then; the columns from there to the end of its block have made up for those before.
        block: columns after which the others are brought up to date; where a block begins, all of them are.

    Returns:
        The new weight Q, and the squared error that it leaves, tr((W - Q) H (W - Q)^T), of W without its dead columns.
    """
    if hessian.order is not None:
        weight = weight[:, hessian.order]
    weight = weight.masked_fill(hessian.dead, 0)
    upper, inputs, error = hessian.upper.to(weight.dtype), weight.shape[1], 0.0
    new = torch.empty_like(weight)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors = weight.new_empty(len(weight), end - start)  # [out, block]
        for column in range(start, end):
            new[:, column] = value(column, weight)
            missing = (weight[:, column] - new[:, column]) / upper[column, column]  # [out]
            weight[:, column:end] -= missing[:, None] * upper[column, column:end]
            errors[:, column - start] = missing
        weight[:, end:] -= errors @ upper[start:end, end:]
        error += float(errors.double().square().sum())
    return (new if hessian.order is None else new[:, hessian.order.argsort()]), error
