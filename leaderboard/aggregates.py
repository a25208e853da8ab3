"""Scores computed again from the documents, as lm-eval aggregates them, to hold against what a record claims."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isclose, log, sqrt
from typing import Any

Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Disagreement:
    """What a record says and what its documents say."""

    what: str
    claimed: Any
    found: Any


def disagreements(
    record: Mapping[str, Any], samples: Samples, aggregations: Mapping[str, str]
) -> Iterator[Disagreement]:
    """Where a record's scores, errors, numbers of documents, tokens or FLOPs differ from those of its documents.

    ``aggregations`` says how a metric is aggregated; a metric that is not in it is a mean.
    """
    own = record["evaluation"]["task"]
    for score in record["scores"]:
        name = f"{score['task']} {score['metric']},{score['filter']}"
        values = _values(samples, score, every=score["task"] == own)
        if not values:
            continue
        if len(values) != score["n"]:
            yield Disagreement(f"{name}, documents", score["n"], len(values))
        aggregation = aggregations.get(score["metric"], "mean")
        if aggregation == "mean" and not all(isinstance(each, int | float) for each in values):
            yield Disagreement(f"{name}, value", score["value"], "no number for a document")
        for what, claimed, found in _recomputed(score, values, aggregation):
            if claimed is None or not isclose(claimed, found, rel_tol=1e-6, abs_tol=1e-9):
                yield Disagreement(f"{name}, {what}", claimed, found)
    totals = {"flops": record["flops"]["total"]}
    totals |= {name: record["trace"][name] for name in ("prompt_tokens", "output_tokens", "pad_tokens")}
    for name, claimed in totals.items():
        found = sum(sample.get(name, 0) for sample in samples)
        if found != claimed:
            yield Disagreement(f"{name}, sum over documents", claimed, found)


def _values(samples: Samples, score: Mapping[str, Any], *, every: bool) -> list[Any]:
    """The documents' values of a score; those of a group's own score are those of all its tasks, if it has them."""
    name = f"{score['metric']},{score['filter']}"
    tasks = {sample["task"] for sample in samples}
    if every and score["task"] not in tasks and len(tasks) > 1:
        return []  # a group's mean can be weighted in several ways
    return (
        [sample["scores"][name] for sample in samples if name in sample["scores"]]
        if every
        else [
            sample["scores"][name] for sample in samples if sample["task"] == score["task"] and name in sample["scores"]
        ]
    )


def _recomputed(
    score: Mapping[str, Any], values: list[Any], aggregation: str
) -> Iterator[tuple[str, float | None, float]]:
    """The value, and for means the standard error; nothing for an aggregation that is not known here."""
    pairs = [each for each in values if isinstance(each, list | tuple) and len(each) == 2]
    numbers = [float(each) for each in values if isinstance(each, int | float)]
    if len(numbers) == len(values):
        mean = sum(numbers) / len(numbers)
        if aggregation == "perplexity":
            yield "value", score["value"], exp(-mean)
        elif aggregation == "mean":
            yield "value", score["value"], mean
            if score["stderr"] is not None and len(numbers) > 1:
                yield "standard error", score["stderr"], mean_error(numbers)
    elif len(pairs) == len(values):
        ratio = sum(each[0] for each in pairs) / (sum(each[1] for each in pairs) or 1)
        if aggregation == "weighted_perplexity":
            yield "value", score["value"], exp(-ratio)
        elif aggregation == "bits_per_byte":
            yield "value", score["value"], -ratio / log(2)


def mean_error(numbers: Sequence[float]) -> float:
    """Standard error of a mean."""
    mean = sum(numbers) / len(numbers)
    return sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1) / len(numbers))


def aggregations(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How a manifest's tasks aggregate their metrics, as far as their configurations say so."""
    known = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    found = known | {"bits_per_byte": "bits_per_byte", "perplexity": "perplexity"}
    tasks = manifest.get("tasks")
    for task in tasks.values() if isinstance(tasks, Mapping) else ():
        listed = task.get("metric_list") if isinstance(task, Mapping) else None
        for entry in _mappings(listed):
            if isinstance(entry.get("metric"), str) and isinstance(entry.get("aggregation"), str):
                found[entry["metric"]] = entry["aggregation"]
    return found


def _mappings(value: Any) -> Iterable[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
