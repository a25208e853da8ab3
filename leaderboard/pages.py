"""What stands on the pages of a run, a method and a model."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.leaderboard.board import short
from harness.leaderboard.evidence import Bar, Flips, flips, histogram
from harness.leaderboard.results import Result, ResultError
from harness.reports.columns import COSTS, Cost, Ratio, at, ratio, trusted, value, why_missing
from harness.reports.rows import Record, Row, difference


@dataclass(frozen=True)
class CostLine:
    """A cost of a run beside dense's."""

    cost: Cost
    value: float | None
    dense: float | None
    ratio: Ratio | None
    word: str
    why: str


@dataclass(frozen=True)
class Histogram:
    """Bars of one number over the documents."""

    title: str
    unit: str
    bars: list[Bar]


def run_page(row: Row, result: Result, dense: Result | None) -> dict[str, Any]:
    """The page of a run; a file that cannot be read is named among the ``problems``."""
    problems: list[str] = []
    histograms, flipped = _documents(row, result, dense, problems)
    try:
        manifest = result.manifest()
    except ResultError as error:
        manifest = {}
        problems.append(str(error))
    return {
        "row": row,
        "record": row.record,
        "difference": difference(row.score),
        "costs": [cost_line(row, cost) for cost in COSTS],
        "histograms": histograms,
        "flips": flipped,
        "command": command(row.record),
        "typed": short(str(manifest.get("command", ""))),
        "commit": short(str(at(manifest, "git.commit") or "")),
        "changed": at(manifest, "git.changed") is True,
        "problems": problems,
        "facts": facts(row.record),
        "state": [json.dumps(part, ensure_ascii=False)[:2000] for part in row.record["method"]["state"] if part],
    }


def cost_line(row: Row, cost: Cost) -> CostLine:
    """One cost of a run."""
    found = value(row.record, cost)
    theirs = value(row.dense, cost) if row.dense else None
    word, _ = trusted(row.record, cost)
    why = "" if found is not None else why_missing(row.record, cost)
    return CostLine(cost, found, theirs, ratio(row.record, row.dense, cost), word, why)


def command(record: Record) -> str:
    """The command that makes this run again; what it leaves out is the default."""
    asked, model, method = record["evaluation"], record["model"], record["method"]
    words = ["harness", "run", "--method", method["label"], "--task", asked["task"]]
    words += ["--pretrained", model["pretrained"], "--batch_size", str(asked["batch_size"])]
    if model["args"]:
        words += ["--model_args", ",".join(f"{name}={given}" for name, given in model["args"].items())]
    if asked["num_fewshot"] is not None:
        words += ["--num_fewshot", str(asked["num_fewshot"])]
    if asked["limit"] is not None:
        words += ["--limit", f"{asked['limit']:g}"]
    if asked["samples"] is not None:
        words += ["--samples", json.dumps(asked["samples"])]
    if asked["gen_kwargs"]:
        words += ["--gen_kwargs", ",".join(f"{name}={given}" for name, given in asked["gen_kwargs"].items())]
    if asked["apply_chat_template"]:
        words += ["--apply_chat_template"]
    if asked["system_instruction"]:
        words += ["--system_instruction", asked["system_instruction"]]
    if asked["seeds"] != [0, 1234, 1234, 1234]:
        words += ["--seed", ",".join(map(str, asked["seeds"]))]
    return shlex.join(words)


def facts(record: Record) -> dict[str, str]:
    """Where and on what it ran, for a list of pairs."""
    model, machine, asked = record["model"], record["environment"], record["evaluation"]
    return {
        "Model": model["name"],
        "Weights": model["fingerprint"],
        "Revision": model["revision"] or "none",
        "Parameters": f"{model['parameters']:,} in {model['layers']} layers, {model['dtype']}, {model['attention']}",
        "Task": asked["task"],
        "Documents": asked["data"],
        "Device": f"{machine['device_name']} ({machine['device']})",
        "Processor": f"{machine['cpu_model']}, {machine['cpus']} cores, {machine['threads'] or '?'} threads used",
        "Memory": f"{machine['ram_bytes'] / 1e9:.1f} GB",
        "System": f"{machine['os']}, Python {machine['python']}",
        "Libraries": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "Load average": " → ".join(f"{load:g}" for load in machine["load_average"]) or "unknown",
        "Started": record["started"],
        "Took": f"{record['duration_s']:.0f} s",
    }


def _documents(
    row: Row, result: Result, dense: Result | None, problems: list[str]
) -> tuple[list[Histogram], Flips | None]:
    """Histograms of the documents' work, and the documents that changed."""
    try:
        samples = list(result.samples())
        histograms = [
            Histogram("FLOPs of a document", "FLOP", histogram(_numbers(samples, "flops"))),
            Histogram("Depth", "share", histogram(_numbers(samples, "depth"))),
            Histogram("Tokens read", "tokens", histogram(_numbers(samples, "prompt_tokens"))),
            Histogram("Tokens written", "tokens", histogram(_numbers(samples, "output_tokens"))),
        ]
        told = [each for each in histograms if len(each.bars) > 1]
        if dense is None or row.score is None or row.is_dense:
            return told, None
        name = f"{row.score['metric']},{row.score['filter']}"
        more = row.score["higher_is_better"] is not False
        changed = flips(samples, dense.samples(), name, more_is_better=more)
    except (ResultError, KeyError, TypeError, ValueError) as error:
        problems.append(f"the documents cannot be shown: {error}")
        return [], None
    return told, changed if changed.pairs else None


def _numbers(samples: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [float(sample[name]) for sample in samples if isinstance(sample.get(name), int | float)]


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
    """For every group with two or more settings of a method: quality lost or won against its strength.

    Strength is the one numeric parameter in which the settings differ; where they differ in several, or in one that
    is no number, it is the FLOPs over dense's.
    """
    found = []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if not row.apart and not row.is_dense and (difference(row.score) or {}).get("difference") is not None:
            groups.setdefault(row.group, []).append(row)
    for some in groups.values():
        name = _strength(some)
        placed = [(_position(row, name), row) for row in some]
        points = [_point(x, row) for x, row in placed if x is not None]
        if len(points) > 1:
            head = some[0]
            title = f"{head.record['model']['name']} · {head.record['evaluation']['task']} · {head.hardware}"
            found.append(Curve(title, name or "FLOPs, × dense", sorted(points, key=lambda point: point.x)))
    return found[:_MOST_CURVES]


def _strength(rows: Sequence[Row]) -> str | None:
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
    found = ratio(row.record, row.dense, COSTS[0])
    return found.value if found else None


def _point(x: float, row: Row) -> CurvePoint:
    change = difference(row.score) or {}
    return CurvePoint(
        x, change["difference"], change.get("low"), change.get("high"), row.record["method"]["label"], row.id
    )


def list_lines(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of the plain tables on the pages of methods and models, groups together and cheapest first."""
    lines = []
    for row in rows:
        work = ratio(row.record, row.dense, COSTS[0])
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
