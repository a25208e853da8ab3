"""The main table as data: rows as columns of numbers and of numbered texts, small enough to travel inside the page.

Every text is kept once and referred to by its number; numbers keep five significant digits, more than any has.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.leaderboard.render import families_json
from harness.reports.columns import (
    Column,
    Ratio,
    columns,
    costs_more,
    estimate,
    ratio,
    trust,
    value,
    why_missing,
    why_no_ratio,
)
from harness.reports.notes import notes
from harness.reports.numbers import PAGE
from harness.reports.rows import Row, difference, score_interval

FACETS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "family": ("Family", lambda row: row.record["method"]["family"]),
    "method": ("Method", lambda row: row.record["method"]["name"]),
    "model": ("Model", lambda row: row.record["model"]["name"]),
    "task": ("Task", lambda row: row.record["evaluation"]["task"]),
    "scoring": ("Scoring", lambda row: row.record["evaluation"]["score_mode"]),
    "hardware": ("Hardware", lambda row: row.hardware),
    "output": ("Output", lambda row: "exact" if row.record["method"]["exact"] else "lossy"),
    "saving": ("Saving", lambda row: row.saving),
}
_LONGEST = 200  # characters of a text in a cell
_SHOWN = (
    *("quality", "difference", "flops", "flops_total", "ideal_ref", "ideal_ref_total"),
    *("ideal_requests", "latency", "energy", "weights"),
)
"""Columns that are shown at first, where known."""


class _Texts:
    """Texts by number, each kept once; the empty text is 0."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {"": 0}

    def number(self, text: str) -> int:
        return self.known.setdefault(short(text), len(self.known))


def short(text: str) -> str:
    """A text of bounded length."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def data(rows: Sequence[Row]) -> dict[str, Any]:
    """What the page's script reads.

    ``texts`` lists every text; ``facets`` names the text columns that filter; ``groups`` says what the runs of a
    group share, each under a ``slug`` that later builds keep; ``rows`` holds columns of equal length;
    ``columns`` describes the numeric ones, each with ``value``, ``low`` and ``high`` in ``numbers`` under its key, and
    ``note``, the number of a text that says why there is no value or how far it can be trusted; ``ranked`` is 0 where
    it is shown and not ranked. ``notes`` are the numbers of texts that must be read with a row. ``families`` has their
    outlines, ``notation`` how numbers are written.
    """
    texts = _Texts()
    heads = sorted({row.group: row for row in reversed(rows)}.values(), key=_place)
    groups = {row.group: number for number, row in enumerate(heads)}
    shared: dict[str, list[Any]] = {
        "id": [row.id for row in rows],
        "label": [texts.number(row.record["method"]["label"]) for row in rows],
        "group": [groups[row.group] for row in rows],
        "settings": [texts.number(row.settings) for row in rows],
        "metric": [texts.number(metric(row)) for row in rows],
        "better": [better(row) for row in rows],
        "documents": [row.score["n"] if row.score else 0 for row in rows],
        "started": [texts.number(row.record["started"][:10]) for row in rows],
        "dense": [int(row.is_dense) for row in rows],
        "apart": [texts.number("; ".join(row.apart)) for row in rows],
        "notes": [[texts.number(note) for note in notes(row, PAGE, in_cells=True)] for row in rows],
    }
    for name, (_, text_of) in FACETS.items():
        shared[name] = [texts.number(text_of(row)) for row in rows]
    described, numbers = _quality(rows, texts)
    for column in columns(row.record for row in rows):
        descriptions, values = _cost(rows, column, texts)
        described += descriptions
        numbers |= values
    known = {key for key, parts in numbers.items() if any(value is not None for value in parts["value"])}
    return {
        "facets": {name: title for name, (title, _) in FACETS.items()},
        "groups": [_group(row) for row in heads],
        "columns": [
            column | {"known": column["key"] in known, "shown": column["key"] in _SHOWN and column["key"] in known}
            for column in described
        ],
        "families": families_json(),
        "notation": asdict(PAGE),
        "texts": list(texts.known),
        "rows": shared,
        "numbers": numbers,
    }


def _place(row: Row) -> tuple[str, ...]:
    """Groups are in the order of model, task and hardware."""
    record = row.record
    return record["model"]["name"], record["evaluation"]["task"], row.hardware, row.settings, row.group


def _group(row: Row) -> dict[str, Any]:
    record = row.record
    return {
        "slug": hashlib.sha256(row.group.encode()).hexdigest()[:10],
        "model": short(row.model),
        "task": short(record["evaluation"]["task"]),
        "hardware": short(row.hardware),
        "settings": short(row.settings),
        "documents": row.score["n"] if row.score else 0,
    }


def metric(row: Row) -> str:
    """The name of a run's main score."""
    if row.score is None:
        return ""
    filtered = "" if row.score["filter"] == "none" else f", {row.score['filter']}"
    return f"{row.score['metric']}{filtered}"


def better(row: Row) -> int:
    """1 where more of the score is better, -1 where less is."""
    return -1 if row.score is not None and row.score["higher_is_better"] is False else 1


def _quality(rows: Sequence[Row], texts: _Texts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The score with its standard error, and its difference to dense with the interval."""
    described = [
        {
            "key": "quality",
            "title": "Quality",
            "unit": "score",
            "kind": "scored",
            "form": "score",
            "help": "lm-eval's own score, with its 95 % interval. The arrow says which way is better.",
        },
        {
            "key": "difference",
            "title": "Against dense",
            "unit": "score",
            "kind": "scored",
            "form": "difference",
            "help": "Method minus dense on the same documents, with the 95 % interval of the paired difference.",
        },
    ]
    scores = [row.score or {"value": None} for row in rows]
    intervals = [score_interval(row.score) or (None, None) for row in rows]
    paired = [difference(row.score) or {} for row in rows]
    no_pair = texts.number("no dense run of the same documents")
    numbers = {
        "quality": {
            "value": [_rounded(score["value"]) for score in scores],
            "low": [_rounded(low) for low, _ in intervals],
            "high": [_rounded(high) for _, high in intervals],
            "note": [0 if score["value"] is not None else texts.number("no score of its own") for score in scores],
        },
        "difference": {
            **{
                name: [_rounded(change.get(part)) for change in paired]
                for name, part in (("value", "difference"), ("low", "low"), ("high", "high"))
            },
            "note": [
                texts.number(without_interval(change)) if change or row.is_dense else no_pair
                for row, change in zip(rows, paired, strict=True)
            ],
        },
    }
    return described, numbers


def without_interval(stated: Mapping[str, Any]) -> str:
    """Why a difference or ratio has no interval; empty where it has one or needs none."""
    reason = stated.get("reason")
    return f"no interval: {reason}" if reason and stated.get("low") is None else ""


def _cost(rows: Sequence[Row], column: Column, texts: _Texts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two columns of a cost: its ratio to dense, and its value."""
    shared = {"kind": column.kind, "help": column.help}
    unit = f"{column.unit}/{column.per}" if column.per else column.unit
    described = [
        {"key": column.key, "title": column.title, "unit": "× dense", "form": "ratio", **shared},
        {"key": f"{column.key}_value", "title": f"{column.title}, value", "unit": unit, "form": "value", **shared},
    ]
    values = [value(row.record, column) for row in rows]
    ratios = [_ratio(row, cost, column) for row, cost in zip(rows, values, strict=True)]
    said = [trust(row.record, column) for row in rows]
    words = [
        f"not measured: {why_missing(row.record, column)}" if cost is None else words.removeprefix("good")
        for row, cost, (words, _) in zip(rows, values, said, strict=True)
    ]
    notes_of_values = [texts.number(text) for text in words]
    ratio_notes = [
        texts.number(_of_ratio(row, against, column, text) if cost is not None else text)
        for row, against, cost, text in zip(rows, ratios, values, words, strict=True)
    ]
    ranked = [int(may_be_ranked) for _, may_be_ranked in said]
    numbers: dict[str, dict[str, list[Any]]] = {
        column.key: {
            "value": [_rounded(against.value if against else None) for against in ratios],
            "low": [_rounded(against.low if against else None) for against in ratios],
            "high": [_rounded(against.high if against else None) for against in ratios],
            "note": ratio_notes,
            "ranked": ranked,
        },
        f"{column.key}_value": {
            "value": [_rounded(cost) for cost in values],
            "note": notes_of_values,
            "ranked": ranked,
        },
    }
    return described, {key: _without_defaults(parts) for key, parts in numbers.items()}


def _of_ratio(row: Row, against: Ratio | None, column: Column, words: str) -> str:
    """What is said of a ratio: why there is none, or that it is above 1, and how far to trust it."""
    if against is None:
        return why_no_ratio(row.record, column)
    dearer = "costs more than dense" if costs_more(against, column) else ""
    return "; ".join(filter(None, (dearer, words, without_interval(asdict(against)))))


def _ratio(row: Row, cost: float | None, column: Column) -> Ratio | None:
    """A method's ratio to dense; dense's own is 1 where it has a value."""
    if row.is_dense:
        return (
            None if cost is None or (column.kind == "estimated" and estimate(row.record, of_clock=True)) else Ratio(1)
        )
    return ratio(row.record, row.dense, column)


def _without_defaults(parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A column's parts without those that say nothing: no interval anywhere, no note, all ranked."""
    return {
        name: values
        for name, values in parts.items()
        if name == "value" or any(value not in (None, 0 if name == "note" else 1) for value in values)
    }


def _rounded(number: float | None) -> float | int | None:
    """Five significant digits; whole numbers without a point."""
    if number is None:
        return None
    short_form = float(f"{number:.5g}")
    return int(short_form) if short_form.is_integer() and abs(short_form) < 1e15 else short_form
