"""One rule for every number of a submission: finite, and in the range of its unit, which its name says."""

from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

from harness.leaderboard.strict_json import KEY, Path, leaves

_FREE: Final = {
    "params",
    "state",
    "args",
    "gen_kwargs",
    "tasks",
    "identity",
    "target",
    "answer",
    "responses",
    "filtered",
}
"""Sections whose numbers are settings and texts of methods and tasks."""
_SIGNED: Final = {"difference", "low", "high", "drift", "active_j"}
_RATIOS: Final = {"ratios", "noise"}
_SHARES: Final = {
    "identity",
    "common",
    "steal_share",
    "p",
    "p_adjusted",
    "prefill_share",
    "answers_changed",
    "acceptance",
}
_MOST: Final = {
    "depth": 64.0,
    "mean_depth_prefill": 64.0,
    "mean_depth_decode": 64.0,
    "others_share": 1.1,
    "gpu_temperature_c": 200.0,
    "clock_mhz": 1e5,
    "gpu_clock_mhz": 1e5,
    "cpus": 1e5,
    "threads": 1e5,
    "layers": 1e4,
    "parameters": 1e14,
    "active_parameters": 1e14,
    "ram_bytes": 1e15,
    "doc_id": 1e12,
    "output_tokens": 1e15,
}
_UNITS: Final = {"_s": (1e9, "seconds"), "_j": (1e12, "joules"), "_w": (1e6, "watts"), "_bytes": (1e24, "bytes")}
_LEAST_NORMAL: Final = 1e-30  # of what is neither 0 nor a probability
_MOST_RATIO: Final = 1e4


def problems(value: Any) -> Iterator[str]:
    """What is wrong with the numbers of a JSON value, each with its place."""
    for path, number in leaves(value):
        if type(number) not in (int, float) or _LEAST_NORMAL < number <= 1:  # in the range of any unit
            continue
        if problem := _problem(path, number):
            yield f"{'.'.join(path)}: {problem}"


def _problem(path: Path, number: float) -> str | None:
    field, parts = path[-1] if path else "", set(path)
    if not isfinite(number):
        return f"{number} is no number"
    if field == KEY or parts & (_FREE - ({"identity"} if "routes" in parts else set())):
        return None
    if parts & _RATIOS:
        return None if _is_normal(number) and number <= _MOST_RATIO else f"{number:g} is no ratio of costs"
    if "scores" in parts and (field in _SIGNED or field == "value" or (path[0] == "scores" and len(path) == 2)):
        return None
    if field in _SIGNED:
        return None
    if field in _SHARES or parts & {"common"}:
        return None if 0 <= number <= 1 else f"{number:g} is no share"
    most, unit = _limit(field)
    if number < 0:
        return f"{number:g} is negative"
    if number > most:
        return f"{number:g} {unit} are more than there are".replace("  ", " ")
    if not _is_normal(number) and field != "entropy":  # a sum of -p log p may be -0
        return f"{number!r} is no quantity of anything"
    return None


def _limit(field: str) -> tuple[float, str]:
    if field in _MOST:
        return _MOST[field], ""
    return next((limit for ending, limit in _UNITS.items() if field.endswith(ending)), (1e30, ""))


def _is_normal(number: float) -> bool:
    """Whether a number that is not negative can be a quantity: no negative zero, and none too small for any unit."""
    return (number == 0 and str(number)[0] != "-") or number > _LEAST_NORMAL
