"""Scores computed again from the documents, as lm-eval aggregates them, to be compared with what a record claims."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from statistics import median
from typing import Any

import numpy as np

from harness.results.cost_lines import CostLine, requests_of
from harness.results.documents import STATISTICS, mean, numeric, parts_of, scored
from harness.results.samples import SampleLine
from harness.results.stats.conventions import Floats


@dataclass(frozen=True)
class Disagreement:
    """What a record claims of ``quantity``, and what its documents give."""

    quantity: str
    claimed: Any
    computed: Any


def disagreements(
    record: Mapping[str, Any], documents: Sequence[SampleLine], aggregations: Mapping[str, str]
) -> Iterator[Disagreement]:
    """Where a record's scores, errors, numbers of documents, tokens, FLOPs or dense's differ from its documents'.

    ``aggregations`` says how a metric is aggregated; a metric that is not in it is a mean.
    """
    tasks = {document["task"] for document in documents}
    for score in record["scores"]:
        if score["task"] in tasks or len(tasks) == 1:  # a group's mean can be weighted in several ways
            yield from _of_score(score, documents, aggregations.get(score["metric"], "mean"))
    flops = record["flops"]  # null where nothing counts them
    totals = {} if flops is None else {"flops": flops["total"]}
    totals |= {name: record["trace"][name] for name in ("prompt_tokens", "output_tokens", "pad_tokens")}
    for name, claimed in totals.items():
        computed = sum(document[name] for document in documents)  # type: ignore[literal-required]
        if computed != claimed:
            yield Disagreement(f"{name}, sum over documents", claimed, computed)
    of_dense = [document["dense_flops"] for document in documents if "dense_flops" in document]
    if flops is not None and of_dense and sum(of_dense) != flops["dense_equivalent"]:
        yield Disagreement("dense_flops, sum over documents", flops["dense_equivalent"], sum(of_dense))


def idealized_disagreements(record: Mapping[str, Any], costs: Sequence[CostLine]) -> Iterator[Disagreement]:
    """Where a record's idealized seconds are not the mean over its documents, if the run states each document's."""
    section = (record["time"] or {}).get("ideal") or {}
    of_run = [line["ideal_s"] for line in costs if "ideal_s" in line]
    of_dense = [line["dense_ideal_s"] for line in costs if "dense_ideal_s" in line]
    for title, name, seconds in (("", "ref_s", of_run), (" of dense", "dense_s", of_dense)):
        claimed = section.get(name)
        if claimed is not None and seconds and not isclose(claimed, sum(seconds) / len(seconds), rel_tol=1e-6):
            yield Disagreement(f"idealized seconds{title}, mean over documents", claimed, sum(seconds) / len(seconds))
    requests = [request["ideal_s"] for request in requests_of(costs) if "ideal_s" in request]
    claimed = section.get("requests_s")
    if claimed and requests and not isclose(claimed, median(requests), rel_tol=1e-6):
        yield Disagreement("idealized seconds, median over the measured requests", claimed, median(requests))


def _of_score(score: Mapping[str, Any], documents: Sequence[SampleLine], aggregation: str) -> Iterator[Disagreement]:
    name = f"{score['metric']},{score['filter']}"
    given = scored(score["task"], name, documents)
    if not given:
        return
    if len(given) != score["n"]:
        yield Disagreement(f"{score['task']} {name}, documents", score["n"], len(given))
    values, statistic = numeric(given), STATISTICS.get(aggregation)
    if statistic is None:
        return
    if values is None or values.shape[1] != parts_of(statistic):
        if statistic is mean:
            yield Disagreement(f"{score['task']} {name}, value", score["value"], "no number for a document")
        return
    with np.errstate(all="ignore"):
        computed = {"value": float(statistic(values))}
    if statistic is mean and score["stderr"] is not None and len(values) > 1:
        computed["stderr"] = standard_error(values)
    for part, title in (("value", "value"), ("stderr", "standard error")):
        claimed = score[part]
        if part in computed and (claimed is None or not isclose(claimed, computed[part], rel_tol=1e-6, abs_tol=1e-9)):
            yield Disagreement(f"{score['task']} {name}, {title}", claimed, computed[part])


def standard_error(values: Floats) -> float:
    """Standard error of the mean of the documents' values, [documents, 1]."""
    return float(values[:, 0].std(ddof=1)) / sqrt(len(values))


def aggregations(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How a manifest's tasks aggregate their metrics, as far as their configurations say so."""
    by_metric = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    by_metric |= {"bits_per_byte": "bits_per_byte", "perplexity": "perplexity"}
    tasks = manifest.get("tasks")
    for task in tasks.values() if isinstance(tasks, Mapping) else ():
        metrics = task.get("metric_list") if isinstance(task, Mapping) else None
        for entry in _mappings(metrics):
            if isinstance(entry.get("metric"), str) and isinstance(entry.get("aggregation"), str):
                by_metric[entry["metric"]] = entry["aggregation"]
    return by_metric


def _mappings(value: Any) -> Iterable[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
