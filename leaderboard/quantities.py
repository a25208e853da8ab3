"""One rule for every number of a submission: finite, and in the range of its unit, which its name says."""

from collections.abc import Iterator
from functools import lru_cache
from math import inf, isfinite
from typing import Any, Final, NamedTuple

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


class _Range(NamedTuple):
    least: float = 0.0
    most: float = inf
    unit: str = ""
    kind: str | None = None
    denormal: bool = False  # may be -0 or of any smallness


_ANY: Final = _Range(least=-inf, denormal=True)


def problems(value: Any) -> Iterator[str]:
    """What is wrong with the numbers of a JSON value, each with its place."""
    for path, number in leaves(value):
        if type(number) not in (int, float) or _LEAST_NORMAL < number <= 1:  # in the range of any unit
            continue
        if problem := _problem(_range(path), number):
            yield f"{'.'.join(path)}: {problem}"


def _problem(limits: _Range, number: float) -> str | None:
    if not isfinite(number):
        return f"{number} is no number"
    if limits.least <= number <= limits.most and (limits.denormal or _is_normal(number)):
        return None
    if limits.kind is not None:
        return f"{number:g} is no {limits.kind}"
    if number < 0:
        return f"{number:g} is negative"
    if number > limits.most:
        return f"{number:g} {limits.unit} are more than there are".replace("  ", " ")
    return f"{number!r} is no quantity of anything"


@lru_cache(maxsize=4096)
def _range(path: Path) -> _Range:
    """What a number at this place may be."""
    field, parts = path[-1] if path else "", set(path)
    if field == KEY or parts & (_FREE - ({"identity"} if "routes" in parts else set())):
        return _ANY
    if parts & _RATIOS:
        return _Range(most=_MOST_RATIO, kind="ratio of costs")
    if field in _SIGNED or ("scores" in parts and (field == "value" or (path[0] == "scores" and len(path) == 2))):
        return _ANY
    if field in _SHARES or "common" in parts:
        return _Range(most=1.0, kind="share", denormal=True)
    denormal = field == "entropy"  # a sum of -p log p may be -0
    if field in _MOST:
        return _Range(most=_MOST[field], denormal=denormal)
    most, unit = next((limit for ending, limit in _UNITS.items() if field.endswith(ending)), (1e30, ""))
    return _Range(most=most, unit=unit, denormal=denormal)


def _is_normal(number: float) -> bool:
    """Whether a number that is not negative can be a quantity: no negative zero, and none too small for any unit."""
    return (number == 0 and str(number)[0] != "-") or number > _LEAST_NORMAL
