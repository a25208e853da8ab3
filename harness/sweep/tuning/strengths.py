"""Strengths of a method whose user names none: steps from the setting that does nothing to the default one."""

from dataclasses import fields
from typing import Any, Final

from harness.contract.method import Method, written
from harness.core.errors import HarnessError, SpecError

_STEPS: Final = 4
_FURTHEST: Final = 64
"""Whole numbers between nothing and the default; further apart, no steps between them are meant."""


def strength(method: type[Method]) -> str | None:
    """The parameter that makes a method stronger: the first of those with which it does nothing; None without any."""
    return next(iter(method.neutral or {}), None)


def is_neutral(part: Method) -> bool:
    """Whether a method leaves the model as it is, by its own declaration."""
    name = strength(type(part))
    if name is None:
        return type(part).neutral is not None
    return bool(getattr(part, name) == getattr(type(part).from_args(dict(part.neutral or {})), name))


def values(method: type[Method], name: str) -> list[str]:
    """Values of a parameter, as the command line writes them, from weak to strong, without the one that does nothing.

    Raises:
        SpecError: the parameter has no such steps.
    """
    default = _number(next((field.default for field in fields(method) if field.name == name), None))
    nothing = _number((method.neutral or {}).get(name))
    if name != strength(method) or default is None or nothing is None or default == nothing:
        raise SpecError(f"--space {method.name}:{name}: give its values, such as {method.name}:{name}=FIRST|SECOND")
    if isinstance(default, int) and isinstance(nothing, int):
        if abs(default - nothing) > _FURTHEST:
            return [written(default)]
        pace = 1 if default > nothing else -1
        steps: list[float] = [
            each for each in range(nothing + pace, default + pace, pace) if _takes(method, name, each)
        ]
    else:
        steps = [round(nothing + (default - nothing) * step / _STEPS, 6) for step in range(1, _STEPS + 1)]
    return [written(each) for each in steps]


def _number(value: Any) -> float | None:
    """A parameter's value as a number, also where it is a tuple of one."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _takes(method: type[Method], name: str, value: float) -> bool:
    try:
        method.from_args({name: value})
    except HarnessError:
        return False
    return True
