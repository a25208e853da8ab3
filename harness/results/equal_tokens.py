"""Ratios over dense's on the same tokens, for a run that wrote fewer or more of them than dense.

A method that writes less does less in all, whatever a token costs it. What it saves is its cost over what dense costs
on the very tokens that the method read and wrote, in the same batches; the totals of the two runs stand beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from harness.results.baseline import COSTS, TOTALS, RatioInfo, same_length
from harness.results.cost_lines import CostLine, CostLines
from harness.results.record import RunRecord
from harness.results.samples import SampleLine, key_of
from harness.results.stats.ratio import total_ratio

GROWING: Final = {cost.name: cost for cost in COSTS if cost.same_tokens}
"""Costs that grow with the text, by name."""


def on_equal_tokens(
    ratios: Mapping[str, RatioInfo],
    base: RunRecord,
    run: RunRecord,
    pairs: Sequence[tuple[SampleLine, SampleLine]],
    costs: CostLines,
) -> dict[str, RatioInfo]:
    """Ratios of two runs' totals as ratios on the same tokens, with the totals beside them by the names of ``TOTALS``.

    Args:
        ratios: of totals; rooflines, which have no dense on the same tokens, are left out of the result.
        base, run: the records; a ``base`` that is not dense is itself taken over dense on its own tokens.
        pairs: lines of the same documents, the base's first; ``costs`` are the run's.
    """
    rest = {name: ratio for name, ratio in ratios.items() if name not in GROWING and not name.startswith("roofline:")}
    totals = {f"{name}_total": ratio for name, ratio in ratios.items() if name in GROWING}
    run_json, base_json = run.model_dump(mode="json"), base.model_dump(mode="json")
    equal = dict[str, RatioInfo]()
    for name in GROWING.keys() & ratios.keys():
        # own layers are compared with the base's as dense's profile prices them
        after = share_of_dense(run_json, name)
        before = share_of_dense(base_json, "ideal_ref" if name == "ideal_own" else name)
        if after is not None and before:
            equal[name] = RatioInfo(value=after / before)
    if base.flops is not None and base.flops.total == base.flops.dense_equivalent:
        # dense: one ratio of sums, drawn by documents
        equal |= _drawn("flops", equal, [(line.get("dense_flops"), line["flops"]) for _, line in pairs])
        equal |= _drawn("ideal_ref", equal, [_ideal_seconds(costs.get(key_of(line))) for _, line in pairs])
    return rest | equal | totals


def in_own_forwards(
    ratios: Mapping[str, RatioInfo],
    base: RunRecord,
    run: RunRecord,
    pairs: Sequence[tuple[SampleLine, SampleLine]],
    costs: CostLines,
) -> dict[str, RatioInfo]:
    """Ratios over dense's in the very forwards of the run, of runs that read the same texts in other ones.

    Those that have no dense in these forwards are left out: totals, rooflines, and idealized times of single requests.
    """
    without = {"ideal_requests", *(total.name for total in TOTALS)}
    equal = on_equal_tokens(ratios, base, run, pairs, costs)
    return {name: ratio for name, ratio in equal.items() if name not in without}


def share_of_dense(record: Mapping[str, Any], name: str) -> float | None:
    """A run's cost over what dense costs on the same tokens; None where the record has not both."""
    cost = GROWING[name]
    of_run, of_dense = _at(record, cost.path), _at(record, cost.same_tokens)
    return of_run / of_dense if of_run is not None and of_dense else None


def stated(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The ratios of a record of any age, by the names of ``COSTS`` and ``TOTALS``, as JSON.

    Older records have totals alone under the names of costs; of a run that wrote another length than dense they are
    given their own names, beside what can be said of the same tokens.
    """
    baseline = record.get("baseline") or {}
    ratios: dict[str, Mapping[str, Any]] = dict(baseline.get("ratios") or {})
    is_context_first = (record.get("evaluation") or {}).get("score_mode") == "context-first"  # no older record is
    is_new = is_context_first or any(total.name in ratios for total in TOTALS)
    if is_new or same_length(baseline.get("output_tokens")):
        return ratios
    old = {name: ratios.pop(name) for name in list(ratios) if name in GROWING or name.startswith("roofline:")}
    totals = {f"{name}_total": ratio for name, ratio in old.items() if name in GROWING}
    shares = {name: share for name in GROWING if (share := share_of_dense(record, name)) is not None}
    return ratios | totals | {name: {"value": share, "low": None, "high": None} for name, share in shares.items()}


def _drawn(
    name: str, equal: Mapping[str, RatioInfo], pairs: Iterable[tuple[float | None, float | None]]
) -> dict[str, RatioInfo]:
    """A ratio with its interval over the drawing of documents, given dense's cost and the run's of each."""
    both = list(pairs)
    if name not in equal or not all(dense and cost for dense, cost in both):
        return {}
    dense, cost = np.array(both, dtype=float).T  # [documents] each
    ratio = total_ratio(dense, cost)
    return {name: RatioInfo(value=ratio.value, low=ratio.low, high=ratio.high, reason=ratio.reason)}


def _ideal_seconds(line: CostLine | None) -> tuple[float | None, float | None]:
    """Dense's idealized seconds on a document's tokens, and the run's."""
    return (None, None) if line is None else (line.get("dense_ideal_s"), line.get("ideal_s"))


def _at(record: Mapping[str, Any], path: str) -> float | None:
    value: Any = record
    for part in path.split("."):
        value = None if value is None else value.get(part)
    number: float | None = value
    return number
