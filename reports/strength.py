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
    settings = []
    for group in groups.values():
        parameter = _parameter(group)
        points = [(x, row) for row in group if (x := _position(row, parameter)) is not None]
        if len(points) > 1:
            settings.append(Settings(parameter or _WORK, sorted(points, key=lambda point: point[0])))
    return settings


def _parameter(rows: Sequence[Row]) -> str | None:
    """The one parameter in which runs differ, if it is a number."""
    values: dict[str, set[str]] = {}
    numeric: dict[str, bool] = {}
    for row in rows:
        params = row.record["method"]["params"]
        for name, value in (params[0] if len(params) == 1 else {}).items():
            values.setdefault(name, set()).add(json.dumps(value, sort_keys=True))
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            numeric[name] = numeric.get(name, True) and is_number
    varying = [name for name, distinct in values.items() if len(distinct) > 1]
    return varying[0] if len(varying) == 1 and numeric[varying[0]] else None


def _position(row: Row, parameter: str | None) -> float | None:
    if parameter is not None:
        return float(row.record["method"]["params"][0][parameter])
    work = ratio(row.record, row.dense, BY_KEY["flops"])
    return work.value if work else None
