"""Tokens a second by batch size, as a table of its own: never a column beside costs of single requests."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.reports.columns import at
from harness.reports.numbers import PAGE
from harness.reports.rows import Row

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(rows: Sequence[Row]) -> "DataFrame":
    """All numbers, one line a run and batch size; empty where no run's throughput was measured."""
    import pandas as pd

    return pd.DataFrame([_numbers(row, size) for row, size in _measured(rows)])


def printed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The same as people read it: tokens a second, and over dense's with the interval."""
    lines = []
    for row, size in _measured(rows):
        line = {"method": row.record["method"]["label"], "batch size": str(size["batch_size"])}
        for phase in ("reading", "writing"):
            tokens, ratio = size[phase], size[f"{phase}_ratio"]
            bounds = PAGE.interval(ratio["low"], ratio["high"]) if ratio else ""
            line[f"{phase}, tokens/s (measured)"] = PAGE.unknown if tokens is None else f"{tokens:,.0f}"
            line[f"{phase} over dense's"] = f"{PAGE.ratio(ratio and ratio['value'])} {bounds and f'[{bounds}]'}".strip()
        lines.append({**line, "doubts": "; ".join(size["doubts"])})
    return lines


def _measured(rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    for row in rows:
        yield from ((row, size) for size in at(row.record, "time/throughput/sizes") or ())


def _numbers(row: Row, size: dict[str, Any]) -> dict[str, Any]:
    line = {
        "id": row.id,
        "method": row.record["method"]["label"],
        "model": row.record["model"]["name"],
        "task": row.record["evaluation"]["task"],
        "hardware": row.hardware,
        "regime": at(row.record, "time/throughput/regime"),
        "batch_size": size["batch_size"],
        "layers_run": size["layers_run"],
    }
    for phase in ("reading", "writing"):
        ratio = size[f"{phase}_ratio"] or {}
        line[f"{phase}_tokens_per_s"] = size[phase]
        line |= {
            f"{phase}_ratio{end}": ratio.get(name) for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    return {**line, "doubts": "; ".join(size["doubts"])}
