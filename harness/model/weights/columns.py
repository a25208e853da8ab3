"""Round a weight to a number format column by column, while the columns to come make up for the error of each."""

from dataclasses import replace
from math import gcd

import torch

from harness.core.errors import MethodError
from harness.model.weights.compensation import BLOCK, Hessian, compensated
from harness.model.weights.formats import NumberFormat, Quantized, rounded, scales


class Columns:
    """The columns of a weight in a number format, rounded one after the other.

    Args:
        weight: [out, in].
        static: scales and zero points are those of this weight; else a group has those of the weight as it is when the
            group's first column is rounded, for which the columns come in their own order.
    """

    def __init__(self, weight: torch.Tensor, number: NumberFormat, *, static: bool = True) -> None:
        self.number, self.static = number, static
        self.scale, self.zero = scales(weight, number)
        self.group = weight.shape[1] // self.scale.shape[1]
        self.codes = rounded(weight, self.scale, self.zero, number)  # [out, in]

    def round(self, column: int, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Round a column.

        Args:
            weight: as it is now, [out, in].
            values: what is to be rounded, [out].

        Returns:
            What the codes stand for, [out].
        """
        index, within = divmod(column, self.group)
        span = slice(index, index + 1)
        if within == 0 and not self.static:
            now = weight[:, column : column + self.group]
            self.scale[:, span], zero = scales(now, replace(self.number, group=None))
            if zero is not None and self.zero is not None:
                self.zero[:, span] = zero
        zero = None if self.zero is None else self.zero[:, span]
        codes = rounded(values[:, None], self.scale[:, span], zero, self.number)  # [out, 1]
        self.codes[:, column] = codes[:, 0]
        return Quantized(self.number, codes, self.scale[:, span], zero).dequantized()[:, 0].to(values.dtype)

    @property
    def block(self) -> int:
        """Columns of a block of ``compensated`` in which a group is up to date when its first column is rounded."""
        if self.static:
            return BLOCK
        return BLOCK // self.group * self.group if self.group <= BLOCK else gcd(self.group, BLOCK)

    @property
    def quantized(self) -> Quantized:
        """The weight, once every column has been rounded."""
        return Quantized(self.number, self.codes, self.scale, self.zero)


def rounded_in_turn(
    weight: torch.Tensor,
    hessian: Hessian,
    number: NumberFormat,
    *,
    static: bool = True,
    kept: torch.Tensor | None = None,
) -> tuple[Quantized, float]:
    """GPTQ: a weight [out, in] in a number format, each column making up for those before it.

    Args:
        static: see ``Columns``; where the Hessian has an order of its own, scales are static.
        kept: weights that are not pruned, bool [out, in]; the others stay zero.

    Returns:
        The weight, and the squared error that it leaves in the outputs.

    Raises:
        MethodError: the weight becomes something that is not finite.
    """
    order = range(weight.shape[1]) if hessian.order is None else hessian.order.tolist()
    dead = hessian.dead if hessian.order is None else hessian.dead[hessian.order.argsort()]
    columns = Columns(weight.masked_fill(dead, 0), number, static=static or hessian.order is not None)

    def value(position: int, current: torch.Tensor) -> torch.Tensor:
        column, values = order[position], current[:, position]
        return columns.round(column, current, values if kept is None else values.where(kept[:, column], 0))

    new, error = compensated(weight, hessian, value, columns.block)
    if not new.isfinite().all():
        raise MethodError("a weight that is not finite cannot be rounded: the model's file is damaged")
    return columns.quantized, error
