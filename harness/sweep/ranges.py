"""Ranges and choices: ``layer-drop:count=1..6`` is six methods, ``gptq:bits=3|4|8`` three; ``/`` stays in a value."""

import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice, product
from math import prod
from typing import Final

from harness.contract.stack import written_parts
from harness.core.errors import SpecError

MOST: Final = 10_000
"""Values that a text may stand for."""
_NUMBER = r"[+-]?\d{1,12}(?:\.\d{1,12})?(?:[eE][+-]?\d{1,2})?"  # what decimals add without rounding
_RANGE: Final = re.compile(rf"({_NUMBER}?)\.\.({_NUMBER})(?:\.\.({_NUMBER}))?")
_LIKE_A_RANGE: Final = re.compile(r"[\d.eE/+-]*\d\.\.[\d.eE/+-]*")
_WHOLE: Final = re.compile(r"[+-]?\d+")
_QUOTED: Final = 120  # characters


def methods(text: str) -> list[str]:
    """The methods that a text stands for, each as it is written alone; the last range varies fastest.

    Raises:
        SpecError: a range or a choice that is none, or too many methods.
    """
    parts = [[_argument(item) for item in part.split(",")] for part in written_parts(text)]
    if prod(len(values) for items in parts for values in items) > MOST:
        raise SpecError(f"{shortened(text)}: that is more than {MOST:,} methods; give fewer values")
    return ["+".join(chosen) for chosen in product(*([",".join(each) for each in product(*items)] for items in parts))]


def values(text: str, where: str) -> list[str]:
    """The values that ``1..6``, ``0.1..0.5..0.1`` (with a step), ``3|4|8`` or a plain text stands for.

    Args:
        where: what they are values of, for the error.

    Raises:
        SpecError: a range or a choice that is none, or too many values.
    """
    choices = [choice.strip() for choice in text.split("|")]
    if len(choices) > 1 and not all(choices):
        raise SpecError(f"{where}={shortened(text)}: a choice between | and | is empty; write the values as 3|4|8")
    values = list(islice((value for choice in choices for value in _range(choice, where)), MOST + 1))
    if len(values) > MOST:
        raise SpecError(f"{where}={shortened(text)}: that is more than {MOST:,} values; give fewer, or a larger step")
    return list(dict.fromkeys(values))


def shortened(text: str) -> str:
    """A text as an error quotes it."""
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def _argument(item: str) -> list[str]:
    key, equals, value = item.partition("=")
    if not equals:
        return [item]
    return [f"{key}={each}" for each in values(value, key)]


def _range(text: str, where: str) -> Iterator[str]:
    match = _RANGE.fullmatch(text)
    if match is None or not match[1]:
        if _LIKE_A_RANGE.fullmatch(text):
            raise SpecError(
                f"{where}={text}: expected first..last or first..last..step, such as 1..6 or 0.1..0.5..0.1; values of "
                "several parts are listed: 1/2|1/3"
            )
        yield text
        return
    first, last, step = match.groups()
    if step is None and not (_WHOLE.fullmatch(first) and _WHOLE.fullmatch(last)):
        raise SpecError(f"{where}={text}: a range of fractions needs its step, such as {first}..{last}..0.1")
    start, end, pace = Decimal(first), Decimal(last), Decimal(step or 1)
    if pace <= 0 or start > end:
        raise SpecError(f"{where}={text}: expected first..last in rising order, with a step above 0")
    count = int((end - start) / pace) + 1
    yield from (f"{(start + number * pace):f}" for number in range(count))
