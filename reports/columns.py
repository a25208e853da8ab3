"""The costs that tables, figures and the leaderboard show: those of ``harness.results.baseline``, described.

A kind says how a number came about, and numbers of two kinds never share a column: *counted* (exact, portable),
*modelled* (a formula on a profile), *measured* (on this machine, that day), *estimated* (with nominal powers).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from statistics import mean, median
from typing import Any, Final

from harness.measure.accelerators import HOST
from harness.results.baseline import COSTS, TOTALS, Kind, same_length
from harness.results.cost_lines import CostLine, requests_of
from harness.results.costs import Energy, typical
from harness.results.equal_tokens import stated


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
        same_tokens: path of dense's value on the same tokens, for a cost that grows with the text.
        of_totals: the ratio is over the texts that each run wrote, though one wrote more than the other.
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
    same_tokens: str = ""
    of_totals: bool = False


@dataclass(frozen=True)
class Ratio:
    """A cost over that of dense on the same documents, with its 95 % interval or the reason why it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None


SHOWN_ABOVE: Final = 1.005
"""A ratio from here on is above 1 in two decimals."""

# headings are narrower than the titles of harness.results.baseline
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
_ENERGY = {"per": "request", "doubts": "energy/doubts"}
_DETAILS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "flops": ("Matrix products that ran, padding included; one multiply-add is two.", _SUM),
    "weight_bytes": ("Bytes of weights read by what ran: what bounds decoding one sequence at a time.", _SUM),
    "kv_bytes": ("Bytes of keys and values read and written.", _SUM),
    "weights": ("Bytes of parameters and buffers of the model as it ran, each storage once.", {}),
    "kv_peak": ("Largest key-value cache of one sequence, as it was held.", {}),
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
    "energy_estimated": (
        "Joules from nominal powers, no measurement; where they are a constant power times the time, no ratio is made.",
        _ENERGY,
    ),
}
_DEPTH = "Executed share of all layers in {}, attention and MLP counting half each."


def _columns() -> Iterable[Column]:
    for cost in COSTS:
        text, details = _DETAILS.get(cost.name, (cost.title, {}))
        title = _TITLES.get(cost.name) or cost.title[:1].upper() + cost.title[1:]
        unit = cost.unit.partition("/")[0]
        place, same = cost.path.replace(".", "/"), cost.same_tokens.replace(".", "/")
        yield Column(cost.name, title, place, unit, cost.kind, text, same_tokens=same, **details)
    yield Column(
        "packed_weights",
        "Packed size, not measured",
        "memory/packed_weights",
        "B",
        "counted",
        "Bytes of the weights if what a method rounded were packed, where the run multiplied floats in their place.",
    )
    yield Column(
        "kv_per_token",
        "KV per token",
        "memory/kv_per_token",
        "B",
        "counted",
        "Bytes of that cache for each position that the sequence had by then, kept or not.",
    )
    for phase in ("prefill", "decode"):
        path, text = f"trace/mean_depth_{phase}", _DEPTH.format(phase)
        yield Column(f"depth_{phase}", f"{phase.capitalize()} depth", path, "share", "counted", text)


COLUMNS: tuple[Column, ...] = tuple(_columns())
_TOTALS: Final[Mapping[str, tuple[Column, ...]]] = {
    column.key: (
        replace(
            column,
            key=total.name,
            title=f"{column.title}, totals",
            help=f"{column.help} Over the texts that each run wrote: writing less costs less, whatever a token costs.",
            same_tokens="",
            of_totals=True,
        ),
    )
    for total in TOTALS
    for column in COLUMNS
    if total.name == f"{column.key}_total"
}
BY_KEY: Mapping[str, Column] = {column.key: column for column in (*COLUMNS, *chain(*_TOTALS.values()))}


def columns(records: Iterable[Mapping[str, Any]]) -> list[Column]:
    """All costs, and a roofline for every machine that any of the records has one for.

    Totals are columns of their own where any run wrote fewer or more tokens than dense: a method's ratio is then that
    on the same tokens.
    """
    known = list(records)
    machines = sorted({name for record in known for name in (at(record, "time/roofline") or {})})
    alike = all(wrote_as_much(record) for record in known)
    # totals stand beside what they are the totals of
    costs = COLUMNS if alike else [each for column in COLUMNS for each in (column, *_TOTALS.get(column.key, ()))]
    return [*costs, *(_roofline(name) for name in machines)]


def wrote_as_much(record: Mapping[str, Any]) -> bool:
    """Whether a run wrote as many tokens as dense, so that totals are those of the same tokens."""
    return same_length(at(record, "baseline/output_tokens"))


def on_own_tokens(record: Mapping[str, Any]) -> bool:
    """Whether costs that grow with the text are over what dense costs on the run's own tokens, in its own forwards."""
    return not wrote_as_much(record) or at(record, "evaluation/score_mode") == "context-first"


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
    return _per_document(record, column, column.path)


def reference(record: Mapping[str, Any], dense: Mapping[str, Any] | None, column: Column) -> float | None:
    """Dense's value that a run's ratio is over: that of its run, or that on this run's own tokens."""
    if column.same_tokens and on_own_tokens(record):
        return _per_document(record, column, column.same_tokens)
    return None if dense is None else value(dense, column)


def beside(record: Mapping[str, Any], column: Column, costs: Iterable[CostLine]) -> float | None:
    """What dense measured in the run's own turns, which its ratio is over; None where that was not kept.

    Args:
        costs: the run's own lines, where dense's times stand beside the run's.
    """
    dense = [request["dense"] for request in requests_of(costs) if "dense" in request]
    if column.key == "latency":
        return typical([times["latency"] for times in dense]) if dense else None
    if column.key in ("ttft", "tpot"):
        written = [times for times in dense if "tpot" in times and "ttft" in times]
        every = [seconds for times in written for seconds in times["ttft" if column.key == "ttft" else "tpot"]]
        return median(every) if every else None
    if column.key == "peak_memory":
        peak: float | None = at(record, "baseline/beside/peak_memory")
        return peak
    joules = at(record, "baseline/beside/energy_j") or []
    is_of_kind = (column.key == "energy") == bool(at(record, "baseline/beside/energy_is_measured"))
    return mean(joules) if joules and is_of_kind else None


def _per_document(record: Mapping[str, Any], column: Column, path: str) -> float | None:
    cost: float | None = at(record, path)
    if cost is None or not column.summed:
        return cost
    documents = max((score["n"] for score in record["scores"]), default=0)
    return cost / documents if documents else None


def ratio(record: Mapping[str, Any], dense: Mapping[str, Any] | None, column: Column) -> Ratio | None:
    """A run's cost over that of its dense run: as the record states it, else from both values where they are exact.

    Of a run that wrote another length than dense, it is over dense on the same tokens; its totals are columns of their
    own. A ratio of measurements needs those of the same turns, which two records alone do not give; one of estimates
    that only follow the clock, or that have no interval, says nothing; of some costs the record says why there is none:
    then it is None.
    """
    alike = wrote_as_much(record)
    key = column.key.removesuffix("_total") if column.of_totals and alike else column.key
    known = stated(record).get(key)
    is_vague = column.kind == "estimated" and (
        known is None or known["low"] is None or bool(estimate(record, of_clock=True))
    )
    if known is not None and not is_vague:
        return Ratio(known["value"], known["low"], known["high"], known.get("reason"))
    in_other_forwards = column.of_totals and at(record, "evaluation/score_mode") == "context-first"
    is_refused = _refused(record, column) or (column.key.startswith("roofline:") and not alike)
    if is_refused or in_other_forwards or column.kind in ("measured", "estimated"):
        return None
    cost, of_dense = value(record, column), reference(record, dense, column)
    return None if cost is None or not of_dense else Ratio(cost / of_dense)


def _refused(record: Mapping[str, Any], column: Column) -> str:
    """Why the record says that a cost has no ratio; empty where it does not."""
    return str((record.get("missing") or {}).get(f"baseline.ratios.{column.key}", ""))


def costs_more(against: Ratio, column: Column) -> bool:
    """Whether a ratio is above 1 by its whole interval, and by enough for two decimals to show it.

    What was counted or modelled is exact for the run's own documents, and needs none; what was measured once does.
    """
    least = against.low
    if least is None and column.kind in ("counted", "modelled"):
        least = against.value
    return least is not None and least > 1 and against.value > SHOWN_ABOVE


def estimate(record: Mapping[str, Any], *, of_clock: bool = False) -> str:
    """What a run's energy is made of, in words; empty where counters saw it, or where another kind is asked for.

    Args:
        of_clock: ask for an estimate alone that varies with the clock and with hardly anything else.
    """
    if record.get("energy") is None:
        return ""
    energy = Energy.model_validate(record["energy"])
    if energy.estimated_j is None or (of_clock and not energy.is_clock):
        return ""
    if energy.is_clock:
        return "estimated: constant power x time"
    return f"estimated: {energy.constant_share:.0%} of it constant power x time"


def trust(record: Mapping[str, Any], column: Column) -> tuple[str, bool]:
    """What a reader must know of a run's value, in words, and whether it may be ranked."""
    word = str((at(record, column.word) if column.word else None) or "")
    if column.key.startswith("energy"):
        word = estimate(record) or str(at(record, "energy/label") or "").replace("_", " ")
    doubts = (at(record, column.doubts) if column.doubts else None) or []
    note = str((at(record, column.note) if column.note else None) or "")
    return "; ".join(filter(None, [word, note, *doubts])), word != "poor" and not doubts


def why_missing(record: Mapping[str, Any], column: Column) -> str:
    """Why a cost of a run was not measured, in the record's own words, the most specific first."""
    if column.key in ("ttft", "tpot") and at(record, "time/latency"):
        return "no tokens are written one by one in this task"
    reasons = record.get("missing") or {}
    parts = column.path.split("/")
    for end in range(len(parts), 0, -1):
        if reason := reasons.get(".".join(parts[:end])):
            return str(reason).removeprefix("not measured: ")
    return "no such work in this task" if column.kind == "counted" else "not asked for"


def why_no_ratio(record: Mapping[str, Any], column: Column) -> str:
    """Why a run that has a value for a cost has no ratio to dense."""
    if reason := _refused(record, column):
        return reason
    if column.kind == "estimated" and (words := estimate(record)):
        return (
            f"{words}, no ratio" if bool(estimate(record, of_clock=True)) else f"{words}, without an interval: no ratio"
        )
    if (column.same_tokens or column.key.startswith("roofline:")) and not wrote_as_much(record):
        return "it wrote another length than dense, and dense on the same tokens is not in the record"
    return "no ratio to dense in the record"
