"""The contents of the pages of a run, a method and a model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.core.errors import ResultError
from harness.core.rounding import Rounding
from harness.leaderboard.evidence import Bar, Flips, flips, histogram
from harness.leaderboard.groups import machine_facts, short
from harness.leaderboard.packing import method_file, method_files
from harness.leaderboard.results import Result
from harness.reports.columns import (
    BY_KEY,
    Column,
    Ratio,
    at,
    beside,
    columns,
    costs_more,
    on_own_tokens,
    ratio,
    reference,
    trust,
    value,
    why_missing,
    why_no_ratio,
    wrote_as_much,
)
from harness.reports.notes import notes
from harness.reports.numbers import PAGE
from harness.reports.regimes import REGIMES
from harness.reports.rows import Record, Row, difference
from harness.reports.strength import by_strength
from harness.results.cost_lines import CostLine
from harness.results.record import scoring
from harness.results.samples import SampleLine


@dataclass(frozen=True)
class CostRow:
    """A cost of a run beside dense's, which is that on the tokens of this run where the two wrote other lengths.

    Attributes:
        no_saving: it is of whole texts, of which one run wrote more than the other: what a shorter text costs less is
            no saving.
        of_another_run: dense's was measured in its own run, and not in turns with this one, which the ratio is over.
    """

    column: Column
    value: float | None
    dense: float | None
    ratio: Ratio | None
    noise: Ratio | None
    words: str
    why: str
    why_no_ratio: str
    of_same_tokens: bool
    no_saving: bool
    of_another_run: bool
    is_dearer: bool


@dataclass(frozen=True)
class Histogram:
    """Bars of one number over the documents."""

    title: str
    unit: str
    bars: list[Bar]


_Quantity = Literal["flops", "depth", "prompt_tokens", "output_tokens"]
_CARDS = ("flops", "ideal_ref", "ideal_requests", "latency", "energy", "weights")  # what a page of a run opens with


def run_page(row: Row, result: Result, dense: Sequence[SampleLine]) -> dict[str, Any]:
    """The page of a run, with the documents of its dense run; what cannot be read is named among the ``problems``."""
    problems: list[str] = []
    lines = _costs(result, problems)
    costs = [cost_line(row, column, lines) for column in columns([row.record])]
    histograms, changed = _documents(row, result, dense, problems)
    try:
        manifest = result.manifest()
    except ResultError as error:
        manifest = {}
        problems.append(str(error))
    return {
        "row": row,
        "record": row.record,
        "methods": _method_files(result, problems),
        "difference": difference(row.score),
        "notes": notes(row, PAGE),
        "counter": counter(row),
        "costs": costs,
        "cards": [
            line for key in _CARDS for line in costs if line.column.key == key and line.ratio and not row.is_dense
        ],
        "histograms": histograms,
        "regimes": [(title, regime.printed([row])) for title, regime in REGIMES.values()],
        "flips": changed,
        "command": row.record["command"],
        "typed": short(str(manifest.get("command", ""))),
        "commit": short(str(at(manifest, "git/commit") or "")),
        "changed": at(manifest, "git/changed") is True,
        "problems": problems,
        "facts": facts(row.record),
        "state": [json.dumps(part, ensure_ascii=False)[:2000] for part in row.record["method"]["state"] if part],
    }


def _method_files(result: Result, problems: list[str]) -> dict[str, str]:
    """The text of the files of methods that are not installed; none that is not what ran."""
    texts = {}
    for name in method_files(result):
        try:
            texts[name] = method_file(result, name).decode()
        except ResultError as error:
            problems.append(str(error))
    return texts


def _costs(result: Result, problems: list[str]) -> list[CostLine]:
    """What the run's documents cost; none if they cannot be read."""
    try:
        return list(result.costs())
    except ResultError as error:
        problems.append(str(error))
        return []


def cost_line(row: Row, column: Column, costs: Iterable[CostLine] = ()) -> CostRow:
    """One cost of a run; ``noise`` is dense against dense, measured in the same way.

    Args:
        costs: the run's lines, where dense's times of the same turns are.
    """
    cost = value(row.record, column)
    words, _ = trust(row.record, column)
    why = "" if cost is not None else why_missing(row.record, column)
    noise = (at(row.record, "baseline/noise") or {}).get(column.key)
    against = ratio(row.record, row.dense, column)
    dense = reference(row.record, row.dense, column)
    is_timed = column.kind in ("measured", "estimated")
    in_turns = beside(row.record, column, costs) if is_timed else None
    return CostRow(
        column,
        cost,
        dense if in_turns is None else in_turns,
        against,
        Ratio(**noise) if noise else None,
        words,
        why,
        why_no_ratio(row.record, column),
        bool(column.same_tokens) and on_own_tokens(row.record),
        column.of_totals and not wrote_as_much(row.record),
        is_timed and in_turns is None and dense is not None,
        against is not None and costs_more(against, column),
    )


def counter(row: Row) -> str:
    """What PyTorch's counter saw of some requests, beside what is stated of them; empty where it was not asked."""
    ratio_of_counter, stated = at(row.record, "flops/audit_ratio"), at(row.record, "flops/audit_stated")
    of = " of some of its requests"
    if stated is None:  # an older record, which has the ratio alone
        stated, of = value(row.record, BY_KEY["flops"]), ""
    if ratio_of_counter is None or stated is None:
        return ""
    seen = PAGE.quantity(ratio_of_counter * stated, "FLOP")
    return f"PyTorch's counter: {seen}{of}, stated {PAGE.quantity(stated, 'FLOP')}"


def facts(record: Record) -> dict[str, str]:
    """Where and on what a run was made, for a list of pairs."""
    model, machine, asked = record["model"], record["environment"], record["evaluation"]
    return {
        "Model": model["name"],
        **({"Given as": model["pretrained"]} if model["pretrained"] != model["name"] else {}),
        "Weights": model["fingerprint"],
        **({"Rounding": f"{rounding.label}: {rounding.sentence}"} if (rounding := Rounding.of(model)) else {}),
        "Revision": model["revision"] or "none",
        "License": model.get("license") or "not in the record",
        "Parameters": f"{model['parameters']:,} in {model['layers']} layers, {model['dtype']}, {model['attention']}",
        "Task": asked["task"],
        **({"Scoring": how} if (how := scoring(asked["score_mode"], asked["score_suffix"])) else {}),
        "Documents": asked["data"],
        "Device": f"{machine['device_name']} ({machine['device']})",
        "Processor": f"{machine['cpu_model']}, {machine['cpus']} cores, threads used: {machine['threads'] or '?'}",
        **({"Processor design": "; ".join(design)} if (design := machine_facts(record)) else {}),
        "Memory": f"{machine['ram_bytes'] / 1e9:.1f} GB",
        "System": f"{machine['os']}, Python {machine['python']}",
        "Libraries": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "Load average": " → ".join(f"{load:g}" for load in machine["load_average"]) or "unknown",
        "Started": record["started"],
        "Took": f"{record['duration_s']:.0f} s",
    }


def _documents(
    row: Row, result: Result, dense: Sequence[SampleLine], problems: list[str]
) -> tuple[list[Histogram], Flips | None]:
    """Histograms of the documents' work, and the documents that changed."""
    try:
        samples = list(result.samples())
        histograms = [
            Histogram("FLOPs of a document", "FLOP", histogram(_numbers(samples, "flops"))),
            Histogram("Depth", "share", histogram(_numbers(samples, "depth"))),
            Histogram("Prompt tokens", "tokens", histogram(_numbers(samples, "prompt_tokens"))),
            Histogram("Generated tokens", "tokens", histogram(_numbers(samples, "output_tokens"))),
        ]
        varied = [each for each in histograms if len(each.bars) > 1]
        if not dense or row.score is None or row.is_dense:
            return varied, None
        name = f"{row.score['metric']},{row.score['filter']}"
        more = row.score["higher_is_better"] is not False
        changed = flips(samples, dense, name, more_is_better=more)
    except (ResultError, KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        problems.append(f"the documents cannot be shown: {error}")
        return [], None
    return varied, changed if changed.pairs else None


def _numbers(samples: Iterable[SampleLine], name: _Quantity) -> list[float]:
    return [float(number) for sample in samples if (number := sample[name]) is not None]


@dataclass(frozen=True)
class CurvePoint:
    """One setting of a method: its strength, and its difference to dense with the interval."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    id: str


@dataclass(frozen=True)
class Curve:
    """A method's settings in one group, by strength."""

    group: str
    axis: str
    points: list[CurvePoint]


_MOST_CURVES = 12


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Difference to dense by a method's strength, for the first groups with two or more of its settings."""
    drawn = []
    for settings in by_strength(rows):
        first = settings.points[0][1]
        title = f"{first.record['model']['name']} · {first.record['evaluation']['task']} · {first.hardware}"
        drawn.append(Curve(short(title), short(settings.axis), [_point(x, row) for x, row in settings.points]))
    return sorted(drawn, key=lambda curve: curve.group)[:_MOST_CURVES]


def _point(x: float, row: Row) -> CurvePoint:
    change = difference(row.score) or {}
    return CurvePoint(x, change["difference"], change["low"], change["high"], row.record["method"]["label"], row.id)


def list_lines(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of the plain tables on the pages of methods and models, groups together and cheapest first."""
    lines = []
    for row in rows:
        work = ratio(row.record, row.dense, BY_KEY["flops"])
        lines.append({"row": row, "difference": difference(row.score), "flops": work})
    return sorted(
        lines,
        key=lambda line: (
            line["row"].record["model"]["name"],
            line["row"].record["evaluation"]["task"],
            line["row"].group,
            not line["row"].is_dense,
            line["flops"].value if line["flops"] else 9.0,
        ),
    )
