"""Figures that a group of runs has no numbers for, each with the reason."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from harness.reports.columns import BY_KEY, at, columns, ratio, why_missing, why_no_ratio
from harness.reports.rows import Row


def undrawn(
    rows: Sequence[Row], samples: Mapping[str, Sequence[Any]], cost: str, drawn: Collection[str]
) -> Iterator[str]:
    """Sentences about the figures that are not among those drawn, by the beginnings of their names."""
    methods = [row for row in rows if not row.is_dense]
    reasons = {
        "pareto": ("Quality against cost", _unranked(rows, cost)),
        "breakdown": ("Where the FLOPs go", _without(rows, "flops", dense=True)),
        "breakdown_time": ("Where the time goes", _without(rows, "ideal_ref", dense=True)),
        "phases": ("Prefill and decode", _without(methods, "latency")),
        "speedup": (
            "Measured against modelled",
            _without(methods, "latency") or _without(methods, "ideal_ref") or "no run has a ratio of both",
        ),
        "strength": ("Quality against strength", "no method was run at two strengths or more"),
        "depth": ("Depth by difficulty", _even(methods, samples)),
    }
    for name, (title, reason) in reasons.items():
        if not any(each == name or (name in ("strength", "depth") and each.startswith(f"{name}_")) for each in drawn):
            yield f"{title} is not drawn: {reason}"


def _unranked(rows: Sequence[Row], cost: str) -> str:
    """Why there are not two runs to be compared by quality and cost."""
    column = {each.key: each for each in columns(row.record for row in rows)}.get(cost, BY_KEY["flops"])
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reason = ", ".join(row.apart)
        if not reason and not row.is_dense and ratio(row.record, row.dense, column) is None:
            is_missing = at(row.record, column.path) is None
            why = why_missing(row.record, column) if is_missing else why_no_ratio(row.record, column)
            reason = f"no {column.title} over dense's: {why}"
        if reason:
            reasons.setdefault(reason, []).append(row.record["method"]["label"])
    said = [f"{', '.join(labels) if len(labels) < len(rows) else 'all'}: {why}" for why, labels in reasons.items()]
    alone = len(rows) - sum(map(len, reasons.values()))
    return "; ".join([f"it needs two runs that may be ranked, of which there {'is 1' if alone else 'are 0'}", *said])


def _without(rows: Sequence[Row], key: str, *, dense: bool = False) -> str:
    """Why no run, or no dense run, has a cost; empty where one has it over dense's."""
    column = BY_KEY[key]
    if dense:
        rows = [row for row in rows if row.is_dense]
    if not rows:
        return "no dense run is among them" if dense else "there is no run beside dense"
    if all(at(row.record, column.path) is None for row in rows):
        return f"{column.title}: {why_missing(rows[0].record, column)}"
    if dense:
        return f"the parts of {column.title} are not in dense's record"
    if all(ratio(row.record, row.dense, column) is None for row in rows):
        return f"{column.title}: {why_no_ratio(rows[0].record, column)}"
    return ""


def _even(methods: Sequence[Row], samples: Mapping[str, Sequence[Any]]) -> str:
    """Why there is nothing to see of the depth of documents."""
    if not methods:
        return "there is no run beside dense"
    if not any(samples.get(row.id) for row in methods):
        return "the runs' documents are not here"
    if all(row.dense is None for row in methods):
        return "no dense run is among them"
    return "no run goes deeper for some documents than for others"
