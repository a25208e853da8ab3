"""The costs that tables, figures and the leaderboard show: those of ``harness.results.costs``, described.

A kind says how a number came about, and numbers of two kinds never share a column: *counted* (exact, portable),
*modelled* (a formula on a profile), *measured* (on this machine, that day), *estimated* (time times a constant).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.measure.accelerators import HOST
from harness.results.costs import COSTS, Kind


@dataclass(frozen=True)
class Column:
    """One cost; less is better.

    Attributes:
        key: in URLs, files and ``baseline.ratios``.
        path: of the value in the record, parts joined by slashes.
        unit: SI base unit of the value; "share" lies between 0 and 1.
        summed: the record's value is a sum over the run's documents; readers see it per document.
        per: what the value is of, for the heading: "document", "request" or nothing.
        word: path of the word that says how far to trust the value, such as how an energy was obtained.
        doubts: path of the list of reasons not to trust it.
        note: path of words about how it was measured.
    """

    key: str
    title: str
    path: str
    unit: str
    kind: Kind
    help: str
    summed: bool = False
    per: str = ""
    word: str = ""
    doubts: str = ""
    note: str = ""


@dataclass(frozen=True)
class Ratio:
    """A cost over that of dense on the same documents, with its 95 % interval or the reason why it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None


# headings are narrower than the titles of harness.results.costs
_TITLES = {
    "kv_bytes": "KV traffic",
    "weights": "Weights",
    "ideal_ref": "Idealized time, mean",
    "ideal_own": "Idealized, own layers, mean",
    "ideal_requests": "Idealized time, same requests",
    "ttft": "First token",
    "tpot": "Per token",
    "energy": "Energy",
    "energy_estimated": "Energy, estimated",
}
_DOCUMENT = {"per": "document"}
_SUM = {"summed": True, "per": "document"}
_LATENCY = {"doubts": "time/latency/doubts"}
_TYPICAL = {**_LATENCY, "per": "request", "note": "time/latency/clock"}
_ENERGY = {"per": "request", "word": "energy/label", "doubts": "energy/doubts"}
_DETAILS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "flops": ("Matrix products that ran, padding included; one multiply-add is two.", _SUM),
    "weight_bytes": ("Bytes of weights read by what ran: what bounds decoding one sequence at a time.", _SUM),
    "kv_bytes": ("Bytes of keys and values read and written.", _SUM),
    "weights": ("Bytes of parameters and buffers of the model as it ran, each storage once.", {}),
    "kv_peak": ("Largest key-value cache of one sequence, over the layers that ran.", {}),
    "ideal_ref": (
        "The trace of the run, priced with a profile of the dense model's layers on this machine; of all documents.",
        {**_DOCUMENT, "word": "time/ideal/label"},
    ),
    "ideal_own": (
        "The same, priced with a profile of the method's own layers.",
        {**_DOCUMENT, "word": "time/ideal/own_label"},
    ),
    "ideal_requests": (
        "The idealized time of the requests whose latency was measured, by the same statistic: the median over them.",
        {"per": "request", "word": "time/ideal/label"},
    ),
    "latency": (
        "Wall time of a request at batch size 1, to the last token: the median over requests of each one's median.",
        _TYPICAL,
    ),
    "ttft": ("Wall time to the first token; the median.", _LATENCY),
    "tpot": ("Wall time of each further token; the median.", _LATENCY),
    "peak_memory": ("Most memory of the process, or of the device, while requests ran.", {}),
    "energy": ("Joules that counters saw.", _ENERGY),
    "energy_estimated": ("Joules from time and nominal power: as good as the constant, and no measurement.", _ENERGY),
}
_DEPTH = "Executed share of all layers in {}, attention and MLP counting half each."


def _columns() -> Iterable[Column]:
    for cost in COSTS:
        text, details = _DETAILS.get(cost.name, (cost.title, {}))
        title = _TITLES.get(cost.name) or cost.title[:1].upper() + cost.title[1:]
        unit = cost.unit.partition("/")[0]
        yield Column(cost.name, title, cost.path.replace(".", "/"), unit, cost.kind, text, **details)
    for phase in ("prefill", "decode"):
        path, text = f"trace/mean_depth_{phase}", _DEPTH.format(phase)
        yield Column(f"depth_{phase}", f"{phase.capitalize()} depth", path, "share", "counted", text)


COLUMNS: tuple[Column, ...] = tuple(_columns())
BY_KEY: Mapping[str, Column] = {column.key: column for column in COLUMNS}


def columns(records: Iterable[Mapping[str, Any]]) -> list[Column]:
    """All costs, and a roofline for every machine that any of the records has one for."""
    machines = sorted({name for record in records for name in (at(record, "time/roofline") or {})})
    return [*COLUMNS, *(_roofline(name) for name in machines)]


def _roofline(machine: str) -> Column:
    peaks = "the products and copies that were measured on it" if machine == HOST else "its data sheet"
    text = f"Lower bound of the time that the counted work takes on {machine}, by {peaks}."
    section, title = f"time/roofline/{machine}", f"Roofline {machine}"
    doubts = f"{section}/doubts"
    return Column(
        f"roofline:{machine}", title, f"{section}/seconds", "s", "modelled", text, per="document", doubts=doubts
    )


def at(record: Mapping[str, Any], path: str) -> Any:
    """What lies at a path of a record, as JSON; None where a part of the path is absent or null."""
    value: Any = record
    for part in path.split("/"):
        if not isinstance(value, Mapping) or (value := value.get(part)) is None:
            return None
    return value


def value(record: Mapping[str, Any], column: Column) -> float | None:
    """A run's cost in the column's unit, per document where the record has a sum."""
    cost: float | None = at(record, column.path)
    if cost is None or not column.summed:
        return cost
    documents = max((score["n"] for score in record["scores"]), default=0)
    return cost / documents if documents else None


def ratio(record: Mapping[str, Any], dense: Mapping[str, Any] | None, column: Column) -> Ratio | None:
    """A run's cost over that of its dense run: as the record states it, else from both values where they are exact.

    A ratio of measurements needs an interval, which two records alone do not give; then it is None.
    """
    stated = (at(record, "baseline/ratios") or {}).get(column.key)
    if stated is not None:
        return Ratio(stated["value"], stated["low"], stated["high"], stated.get("reason"))
    if dense is None or column.kind in ("measured", "estimated"):
        return None
    cost, reference = value(record, column), value(dense, column)
    return None if cost is None or not reference else Ratio(cost / reference)


def trust(record: Mapping[str, Any], column: Column) -> tuple[str, bool]:
    """What a reader must know of a run's value, in words, and whether it may be ranked."""
    word = str((at(record, column.word) if column.word else None) or "")
    doubts = (at(record, column.doubts) if column.doubts else None) or []
    note = str((at(record, column.note) if column.note else None) or "")
    return "; ".join(filter(None, [word.replace("_", " "), note, *doubts])), word != "poor" and not doubts


def why_missing(record: Mapping[str, Any], column: Column) -> str:
    """Why a run has no value for a cost, in the record's own words, the most specific first."""
    reasons = record.get("missing") or {}
    parts = column.path.split("/")
    for end in range(len(parts), 0, -1):
        if reason := reasons.get(".".join(parts[:end])):
            return str(reason)
    return "no such work in this task" if column.kind == "counted" else "not recorded"
