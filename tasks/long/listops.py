"""ListOps (arXiv:1804.06028), in the grammar of Long Range Arena's data (arXiv:2011.04006)."""

from typing import Final

from ..pocket.splits import Draw
from .documents import Document

DEPTH: Final = 10
ARGUMENTS: Final = 10
DIGIT: Final = 0.25
"""Probability that an argument is a digit, however long the expression is to be."""
OPERATORS: Final = ("MIN", "MAX", "MED", "SM")
DIGITS: Final = tuple("0123456789")
RULES: Final = (
    "An expression is a digit, or an operator with expressions in brackets. MIN is the smallest and MAX the largest "
    "of its values, MED their median, rounded down, and SM the last digit of their sum.\n\n"
    "[MAX 4 1 7 ] = 7\n[SM 8 5 [MIN 9 2 ] ] = 5\n[MED 6 [SM 9 9 ] 1 3 ] = 4\n"
)

Tree = str | tuple[str, tuple["Tree", ...]]
"""A digit, or an operator and its arguments."""


def listops(draw: Draw, size: int, tokens: int) -> Document:
    """An expression of up to ``size`` symbols, whose value is one of ten digits."""
    expression = tree(draw, size)
    return Document(RULES + written(expression), " =", (str(value(expression)),), DIGITS)


def tree(draw: Draw, size: int, depth: int = 1) -> Tree:
    """An expression of at most ``size`` symbols: an operator, its arguments and a closing bracket.

    Long Range Arena draws trees and keeps those of a wanted length. Here an argument that is no digit by chance gets a
    share of the length, so that all trees of the grammar (up to ten arguments, ten deep) can come, and every one fits.
    """
    if size < 4 or depth == DEPTH:
        return draw.pick(DIGITS)
    room = size - 2  # the operator and its bracket
    count = min(draw.between(2, ARGUMENTS), room)
    is_digit = [draw.between(0, 99) < 100 * DIGIT for _ in range(count)]
    if depth < 3 and all(is_digit):
        is_digit[draw.between(0, count - 1)] = False  # else the expression ends here, however long it is to be
    weights = [0 if digit else draw.between(1, 100) for digit in is_digit]
    spare, total = room - count, sum(weights)
    return draw.pick(OPERATORS), tuple(
        draw.pick(DIGITS) if digit else tree(draw, 1 + spare * weight // total, depth + 1)
        for digit, weight in zip(is_digit, weights, strict=True)
    )


def written(expression: Tree) -> str:
    """An expression as it is read: ``[MAX 2 9 [MIN 4 7 ] ]``."""
    if isinstance(expression, str):
        return expression
    operator, arguments = expression
    return f"[{operator} {' '.join(map(written, arguments))} ]"


def value(expression: Tree) -> int:
    """What an expression comes to, from 0 to 9."""
    if isinstance(expression, str):
        return int(expression)
    operator, arguments = expression
    values = sorted(map(value, arguments))
    middle = values[(len(values) - 1) // 2] + values[len(values) // 2]
    return {"MIN": values[0], "MAX": values[-1], "MED": middle // 2, "SM": sum(values) % 10}[operator]
