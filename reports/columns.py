"""The costs that tables, figures and the leaderboard show: where each lies in a record, its unit, its kind.

One table serves all readers of records. A kind says how a number came about, and numbers of two kinds never share a
column: *counted* (exact, portable), *modelled* (a formula on a profile), *measured* (on this machine, this day).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["counted", "modelled", "measured"]


@dataclass(frozen=True)
class Cost:
    """One cost; less is better.

    Attributes:
        key: in URLs, files and ``baseline.ratios``.
        path: of the value in the record, parts joined by dots.
        unit: SI base unit of the value; "share" lies between 0 and 1.
        per_document: the record's value is a sum over the run's documents; readers see it per document.
        flag: path of a word that says how far to trust the value, such as how an energy was obtained.
        distrusted: words of the flag whose values are shown and never ranked.
    """

    key: str
    title: str
    path: str
    unit: str
    kind: Kind
    help: str
    per_document: bool = False
    flag: str = ""
    distrusted: tuple[str, ...] = ()


COSTS: tuple[Cost, ...] = (
    Cost(
        "flops",
        "FLOPs",
        "flops.total",
        "FLOP",
        "counted",
        "Matrix products that ran, padding included; one multiply-add is two. Checked against PyTorch's counter.",
        per_document=True,
    ),
    Cost(
        "weight_bytes",
        "Weight traffic",
        "flops.weight_bytes",
        "B",
        "counted",
        "Bytes of weights read by the layers that ran; what decoding one sequence at a time is bound by.",
        per_document=True,
    ),
    Cost(
        "kv_bytes",
        "KV traffic",
        "flops.kv_bytes",
        "B",
        "counted",
        "Bytes of keys and values read and written.",
        per_document=True,
    ),
    Cost(
        "depth_prefill",
        "Prefill depth",
        "trace.mean_depth_prefill",
        "share",
        "counted",
        "Executed share of all layers while reading a text, attention and MLP counting half each.",
    ),
    Cost(
        "depth_decode",
        "Decode depth",
        "trace.mean_depth_decode",
        "share",
        "counted",
        "Executed share of all layers while writing, attention and MLP counting half each.",
    ),
    Cost(
        "weights",
        "Weights",
        "memory.weights",
        "B",
        "counted",
        "Bytes of parameters and buffers of the model as it ran, each storage once.",
    ),
    Cost(
        "kv_peak",
        "KV peak",
        "memory.kv_peak",
        "B",
        "counted",
        "Largest key-value cache of one sequence.",
    ),
)
BY_KEY: Mapping[str, Cost] = {cost.key: cost for cost in COSTS}


@dataclass(frozen=True)
class Ratio:
    """A cost over that of dense on the same documents, with its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def at(record: Mapping[str, Any], path: str) -> Any:
    """What lies at a path of a record, as JSON; None where a part of the path is absent or null."""
    found: Any = record
    for part in path.split("."):
        if not isinstance(found, Mapping) or (found := found.get(part)) is None:
            return None
    return found


def value(record: Mapping[str, Any], cost: Cost) -> float | None:
    """A run's cost in the column's unit, per document where the column says so."""
    found = at(record, cost.path)
    if found is None or not cost.per_document:
        return found
    documents = scored(record)
    return found / documents if documents else None


def scored(record: Mapping[str, Any]) -> int:
    """Documents of the run."""
    return max((score["n"] for score in record["scores"]), default=0)


def ratio(record: Mapping[str, Any], dense: Mapping[str, Any] | None, cost: Cost) -> Ratio | None:
    """A run's cost over that of its dense run: as the record states it, else from both values where they are counts.

    A ratio of measurements needs an interval, which two records alone do not give; then it is None.
    """
    stated = at(record, f"baseline.ratios.{cost.key}")
    if stated is not None:
        return Ratio(stated["value"], stated.get("low"), stated.get("high"))
    if dense is None or cost.kind == "measured":
        return None
    own, theirs = value(record, cost), value(dense, cost)
    return None if own is None or not theirs else Ratio(own / theirs)


def trusted(record: Mapping[str, Any], cost: Cost) -> tuple[str, bool]:
    """The word that says how far to trust a run's cost, and whether it may be ranked."""
    word = str((at(record, cost.flag) if cost.flag else None) or "")
    return word, word not in cost.distrusted


def why_missing(record: Mapping[str, Any], cost: Cost) -> str:
    """Why a run has no value for a cost, in the record's own words, most specific first."""
    reasons = record.get("missing") or {}
    parts = cost.path.split(".")
    for end in range(len(parts), 0, -1):
        if reason := reasons.get(".".join(parts[:end])):
            return str(reason)
    return "no such work in this task" if cost.kind == "counted" else "not recorded"
