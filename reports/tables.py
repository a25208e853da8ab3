"""Comparisons as pandas tables: one row a run, numbers as numbers; and the same for print, with intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.core.text import printable
from harness.reports.columns import Column, columns, ratio, value
from harness.reports.notes import notes
from harness.reports.numbers import PAGE
from harness.reports.rows import Row, difference, score_interval

if TYPE_CHECKING:
    from pandas import DataFrame

_PRINTED = ("flops", "flops_total", "ideal_ref", "ideal_ref_total", "ideal_requests", "latency", "energy", "weights")


def frame(rows: Sequence[Row]) -> "DataFrame":
    """All numbers of the runs, for further work: values in SI base units, ratios to dense with their bounds."""
    import pandas as pd

    return pd.DataFrame([_numbers(row, rows) for row in rows])


def _numbers(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    record, score, change = row.record, row.score or {}, difference(row.score) or {}
    low, high = score_interval(row.score) or (None, None)
    line: dict[str, Any] = {
        "id": row.id,
        "method": record["method"]["label"],
        "family": record["method"]["family"],
        "savings": row.saving.removesuffix(" here"),
        "model": record["model"]["name"],
        "task": record["evaluation"]["task"],
        "hardware": row.hardware,
        "settings": row.settings,
        "metric": score.get("metric"),
        "documents": score.get("n"),
        "score": score.get("value"),
        "score_low": low,
        "score_high": high,
        "difference": change.get("difference"),
        "difference_low": change.get("low"),
        "difference_high": change.get("high"),
        "difference_p": change.get("p"),
        "apart": "; ".join(row.apart),
        "notes": "; ".join(notes(row, PAGE)),
    }
    for column in columns(each.record for each in rows):
        against = ratio(record, row.dense, column)
        line[column.key] = value(record, column)
        line[f"{column.key}_ratio"] = against.value if against else None
        line[f"{column.key}_ratio_low"] = against.low if against else None
        line[f"{column.key}_ratio_high"] = against.high if against else None
    return line


def printed(rows: Sequence[Row]) -> "DataFrame":
    """The comparison as people read it: score, difference and the main ratios, each with its interval."""
    import pandas as pd

    known = columns(row.record for row in rows)
    shown = [column for key in _PRINTED for column in known if column.key == key]
    shown = [column for column in shown if any(ratio(row.record, row.dense, column) for row in rows)]
    lines = []
    for row in rows:
        line = {
            "method": row.record["method"]["label"] + _saving(row),
            "model": row.record["model"]["name"],
            "task": row.record["evaluation"]["task"],
            "score": PAGE.score(row.score["value"] if row.score else None),
            "against dense": "reference" if row.is_dense else _change(row),
        }
        for column in shown:
            line[f"{column.title} ({column.kind})"] = _against(row, column)
        line["apart"] = "; ".join(row.apart)
        lines.append(line)
    table = pd.DataFrame(lines)
    return table if table["apart"].any() else table.drop(columns="apart")


def _saving(row: Row) -> str:
    """What stands behind a method's name unless its saving was real."""
    return "" if row.is_dense or row.saving == "real" else f" ({row.saving})"


def _change(row: Row) -> str:
    """A run's difference to dense, with its interval."""
    change = difference(row.score)
    if change is None:
        return PAGE.unknown
    bounds = PAGE.interval(change["low"], change["high"], "difference")
    return _with(PAGE.difference(change["difference"]), bounds)


def _against(row: Row, column: Column) -> str:
    """A run's cost over dense's, with its interval."""
    if row.is_dense:
        return PAGE.ratio(1.0 if value(row.record, column) is not None else None)
    against = ratio(row.record, row.dense, column)
    if against is None:
        return PAGE.unknown
    return _with(PAGE.ratio(against.value), PAGE.interval(against.low, against.high))


def _with(number: str, bounds: str) -> str:
    return f"{number} [{bounds}]" if bounds else number


def latex(table: "DataFrame", said: Sequence[str] = ()) -> str:
    """The printed table and its notes for a paper that loads booktabs; what TeX would read as a command is escaped."""
    escaped = table.map(_tex).rename(columns=_tex)
    text = escaped.style.hide(axis="index").to_latex(hrules=True, column_format="ll" + "r" * (table.shape[1] - 2))
    items = "".join(f"\\item {_tex(note)}\n" for note in said)
    return f"{text}\\begin{{itemize}}\n{items}\\end{{itemize}}\n" if items else str(text)


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "µ": r"$\mu$",
    "\N{REPLACEMENT CHARACTER}": "?",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in printable(text))
