"""Times without launch overhead, as a table of its own: never a column beside costs of single requests."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.reports.columns import at
from harness.reports.numbers import PAGE
from harness.reports.rows import Row

if TYPE_CHECKING:
    from pandas import DataFrame

_TITLES: Final = {"latency": "latency", "ttft": "first token", "tpot": "each token"}
_BOUNDS: Final = (("", "value"), ("_low", "low"), ("_high", "high"))


def frame(rows: Sequence[Row]) -> "DataFrame":
    """All numbers, one line a run; empty where no run's steps were captured."""
    import pandas as pd

    return pd.DataFrame([_numbers(row, section) for row, section in _measured(rows)])


def printed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The same as people read it: times, and over dense's with the interval; beside them why others have none."""
    measured = list(_measured(rows))
    names = [name for name in _TITLES if any(name in section["typical"] for _, section in measured)]
    lines = [_line(row, section, names) for row, section in measured]
    for row in rows if lines else ():
        if reason := row.record["missing"].get("time.graph"):
            blank = dict.fromkeys(lines[0], "") | {"method": row.record["method"]["label"]}
            lines.append(blank | {"captured by": PAGE.unknown, "doubts": f"no times: {reason}"})
    return lines


def _line(row: Row, section: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    line = {"method": row.record["method"]["label"], "captured by": section["captured_by"]}
    for name in names:
        ratio = section["ratios"].get(name)
        bounds = PAGE.interval(ratio["low"], ratio["high"]) if ratio else ""
        line[f"{_TITLES[name]} (measured)"] = PAGE.quantity(section["typical"].get(name), "s")
        over = f"{PAGE.ratio(ratio and ratio['value'])} {bounds and f'[{bounds}]'}"
        line[f"{_TITLES[name]} over dense's"] = over.strip()
    return {
        **line,
        "prompts": "captured" if section["reads"] else "read without captured steps",
        "tokens that differ": f"{section['differences']} of {section['tokens']}",
        "doubts": "; ".join(section["doubts"]),
    }


def _measured(rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    yield from ((row, section) for row in rows if (section := at(row.record, "time/graph")) is not None)


def _numbers(row: Row, section: dict[str, Any]) -> dict[str, Any]:
    line = {
        "id": row.id,
        "method": row.record["method"]["label"],
        "model": row.record["model"]["name"],
        "task": row.record["evaluation"]["task"],
        "hardware": row.hardware,
        **{name: section[name] for name in ("regime", "captured_by", "dense_by", "reads", "tokens", "differences")},
    }
    for name in _TITLES:
        line[f"{name}_s"] = section["typical"].get(name)
        for what, prefix in (("ratios", "ratio"), ("noise", "dense_over_dense")):
            ratio = section[what].get(name) or {}
            line |= {f"{name}_{prefix}{end}": ratio.get(bound) for end, bound in _BOUNDS}
    return {**line, "doubts": "; ".join(section["doubts"])}
