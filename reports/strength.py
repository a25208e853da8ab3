"""Settings of one method side by side, by the parameter that makes it stronger."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from harness.reports.columns import BY_KEY, ratio
from harness.reports.rows import Row, difference

_WORK = "FLOPs, × dense"


@dataclass(frozen=True)
class Settings:
    """A method's settings in one group: ``axis`` names the parameter, points are in its order."""

    axis: str
    points: list[tuple[float, Row]]


def by_strength(rows: Sequence[Row]) -> list[Settings]:
    """For every method and group with two or more settings that are compared with dense.

    Strength is the one numeric parameter in which the settings differ; where they differ in several, or in one that
    is no number, it is the FLOPs over dense's.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.apart and not row.is_dense and difference(row.score) is not None:
            groups.setdefault((row.record["method"]["name"], row.group), []).append(row)
    found = []
    for some in groups.values():
        name = _parameter(some)
        placed = [(x, row) for row in some if (x := _position(row, name)) is not None]
        if len(placed) > 1:
            found.append(Settings(name or _WORK, sorted(placed, key=lambda pair: pair[0])))
    return found


def _parameter(rows: Sequence[Row]) -> str | None:
    """The one parameter in which runs differ, if it is a number."""
    seen: dict[str, set[str]] = {}
    numeric: dict[str, bool] = {}
    for row in rows:
        params = row.record["method"]["params"]
        for name, given in (params[0] if len(params) == 1 else {}).items():
            seen.setdefault(name, set()).add(json.dumps(given, sort_keys=True))
            is_number = isinstance(given, int | float) and not isinstance(given, bool)
            numeric[name] = numeric.get(name, True) and is_number
    varying = [name for name, values in seen.items() if len(values) > 1]
    return varying[0] if len(varying) == 1 and numeric[varying[0]] else None


def _position(row: Row, name: str | None) -> float | None:
    if name is not None:
        return float(row.record["method"]["params"][0][name])
    found = ratio(row.record, row.dense, BY_KEY["flops"])
    return found.value if found else None
