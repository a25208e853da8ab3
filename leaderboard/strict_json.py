"""JSON from anybody, with one reading alone: no key twice, no number beyond reason, bounded in size and depth."""

import json
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final, NoReturn

from harness.core.errors import ResultError

MAX_LARGEST: Final = 1e30  # no quantity of a run is larger
MAX_VALUES: Final = 60_000  # values of one file or line
MAX_DEPTH: Final = 32
Path = tuple[str, ...]
"""Where a value stands: keys and places from the outside in."""


def decode(text: bytes, name: str) -> Any:
    """The value that a file or a line is JSON of.

    Raises:
        ResultError: it is no JSON in UTF-8, says a key twice, or is too deep, too long or too large.
    """
    if max(text.count(b":"), text.count(b",")) > 4 * MAX_VALUES:  # before memory is taken for them
        raise ResultError(f"{name} has more than {MAX_VALUES:,} values")
    try:
        value = _DECODER.decode(text.decode("utf-8"))
    except RecursionError:
        raise ResultError(f"{name} is nested too deep") from None
    except ValueError as error:
        raise ResultError(f"{name} is not JSON: {error}") from error
    if len(text) > MAX_VALUES or text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        _bound(value, name)
    return value


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is no object and no list, and every key (at a path that ends in ``<key>``), with its path."""
    stack = [(path, value)]
    while stack:
        where, each = stack.pop()
        if isinstance(each, dict):
            at_key = (*where, KEY)
            for key, part in each.items():
                yield at_key, key
                if isinstance(part, dict | list | tuple):
                    stack.append(((*where, key), part))
                else:
                    yield (*where, key), part
        elif isinstance(each, list | tuple):
            stack.extend((where, part) for part in each)
        else:
            yield where, each


KEY: Final = "<key>"


def _bound(value: Any, name: str) -> None:
    """Refuse what is too deep or has too many values, level by level."""
    level, values = [value], 0
    for _ in range(MAX_DEPTH + 1):
        values += len(level)
        if values > MAX_VALUES:
            raise ResultError(f"{name} has more than {MAX_VALUES:,} values")
        below = [each for each in level if isinstance(each, dict | list)]
        level = [part for each in below for part in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise ResultError(f"{name} is nested too deep: more than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON has")


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number) or abs(number) > MAX_LARGEST:
        raise ValueError(f"a number beyond {MAX_LARGEST:g}")
    return number


def _int(text: str) -> int:
    if len(text) > 31:
        raise ValueError(f"a number beyond {MAX_LARGEST:g}")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    parse_constant=_no_number, parse_float=_float, parse_int=_int, object_pairs_hook=_object
)
