"""Ratios of a run's costs to dense's: counted, modelled and measured, each with the interval that it has."""

import math
from collections.abc import Collection, Sequence
from typing import Final, Literal

import numpy as np

from harness.results.baseline import COSTS, Baseline, Beside, RatioInfo
from harness.results.cost_lines import CostLines, RequestLine, Role, requests_of
from harness.results.record import RunRecord
from harness.results.samples import Key, SampleLine
from harness.results.stats.conventions import Floats
from harness.results.stats.ratio import Ratio, paired_ratio, total_ratio

MEASURED: Final = frozenset(cost.name for cost in COSTS if cost.kind in ("measured", "estimated"))
_Time = Literal["latency", "ttft", "tpot"]
_TIMES: Final[tuple[_Time, ...]] = ("latency", "ttft", "tpot")
_OTHER_FORWARDS: Final = "dense's own run reads these texts in other forwards"
_ONCE: Final = "measured once: no noise to estimate"
Pairs = Sequence[tuple[SampleLine, SampleLine]]
"""Lines of the same documents, dense's first."""


def counted(dense: RunRecord, method: RunRecord, pairs: Pairs) -> dict[str, RatioInfo]:
    """Ratios of counted work and memory, which are exact; of FLOPs also over the drawing of documents."""
    totals: dict[str, tuple[int | None, int | None]] = {
        "weights": (dense.memory.weights, method.memory.weights),
        "kv_peak": (dense.memory.kv_peak, method.memory.kv_peak),
    }
    flops = None
    if dense.flops is not None and method.flops is not None:
        flops = _of_totals([line["flops"] or 0 for line, _ in pairs], [line["flops"] or 0 for _, line in pairs])
        totals["weight_bytes"] = (dense.flops.weight_bytes, method.flops.weight_bytes)
        totals["kv_bytes"] = (dense.flops.kv_bytes, method.flops.kv_bytes)
    exact = {
        name: RatioInfo(value=after / before)
        for name, (before, after) in totals.items()
        if before and after is not None
    }
    return ({} if flops is None else {"flops": _info(flops)}) | exact


def modelled(
    dense: RunRecord, method: RunRecord, keys: Collection[Key], dense_costs: CostLines, method_costs: CostLines
) -> dict[str, RatioInfo]:
    """Ratios of idealized time, where both are of the same cost profile, and of rooflines.

    Seconds that are not positive have no ratio: it is left out, and ``without_ratio`` says why.
    """
    before, after = dense.time, method.time
    if before is None or after is None:
        return {}
    ratios = {
        f"roofline:{name}": RatioInfo(value=after.roofline[name].seconds / before.roofline[name].seconds)
        for name in before.roofline.keys() & after.roofline.keys()
        if _is_positive(before.roofline[name].seconds, after.roofline[name].seconds)
    }
    if before.ideal is None or after.ideal is None or before.ideal.profile != after.ideal.profile:
        return ratios
    reference = _of_totals(_ideal_seconds(keys, dense_costs), _ideal_seconds(keys, method_costs))
    if reference is not None:
        ratios["ideal_ref"] = _info(reference)
    same = [_request_seconds(keys, whose) for whose in (dense_costs, method_costs)]
    if same[0].keys() == same[1].keys() and same[0] and _is_positive(*same[0].values(), *same[1].values()):
        seconds = [np.array([[whose[place]] for place in sorted(same[0])]) for whose in same]  # each [requests, 1]
        ratios["ideal_requests"] = _info(paired_ratio(*seconds))
    if after.ideal.own_s is not None and _is_positive(after.ideal.own_s, before.ideal.ref_s):
        ratios["ideal_own"] = RatioInfo(value=after.ideal.own_s / before.ideal.ref_s)
    return ratios


def reads_otherwise(dense: RunRecord, method: RunRecord) -> bool:
    """Whether two runs that scored texts context first read them in other forwards, or may have.

    What dense moves for a text tells its forwards apart: each of them reads the weights.
    """
    if method.evaluation.score_mode != "context-first":
        return False
    if dense.flops is None or method.flops is None:
        return True
    before, after = (
        (run.dense_weight_bytes or 0, run.dense_kv_bytes or 0, run.dense_equivalent)
        for run in (dense.flops, method.flops)
    )
    return not np.allclose(before, after, rtol=1e-6, atol=0)  # shares of a batch's reads are rounded


def without_ratio(record: RunRecord, baseline: Baseline, dense: RunRecord) -> dict[str, str]:
    """Why modelled times of a record that has them have no ratio to dense's, by its path."""
    if record.time is None or (ideal := record.time.ideal) is None:
        return {}
    values = {"ideal_ref": ideal.ref_s, "ideal_own": ideal.own_s, "ideal_requests": ideal.requests_s}
    reasons = {
        f"baseline.ratios.{name}": "idealized seconds that are not positive have no ratio: the cost profile is unusable"
        for name, value in values.items()
        if value is not None and name not in baseline.ratios and not _is_positive(value)
    }
    if reads_otherwise(dense, record):
        bounds = [f"roofline:{name}" for name in record.time.roofline]
        reasons |= {f"baseline.ratios.{name}": _OTHER_FORWARDS for name in ("ideal_requests", *bounds)}
    return reasons


def measured(requests: Sequence[RequestLine], role: Role = "run") -> dict[str, RatioInfo]:
    """Ratios of times to those of dense in the same rounds, request by request; none without dense's."""
    ratios = dict[str, RatioInfo]()
    for name in _TIMES:
        dense, times = (_seconds(requests, whose, name) for whose in ("dense", role))
        if dense is not None and times is not None:
            ratios[name] = _info(paired_ratio(dense, times))
    return ratios


def beside_dense(
    record: RunRecord, costs: CostLines, dense: Beside | None
) -> tuple[dict[str, RatioInfo], dict[str, RatioInfo]]:
    """Ratios of what a run measured to what dense measured in the same rounds, and those of dense repeated (noise).

    Ratios of older runs, which did not keep dense's measurements, stay as they are.
    """
    requests, old = requests_of(costs.values()), record.baseline
    kept = {name: ratio for name, ratio in old.ratios.items() if name in MEASURED} if old else {}
    if record.energy is not None and record.energy.is_clock:
        kept.pop("energy_estimated", None)
    totals = _of_windows(record, dense) if dense else {}
    noise = measured(requests, "dense_repeat") or (old.noise if old else {})
    return kept | measured(requests) | totals, noise


def _of_windows(record: RunRecord, dense: Beside) -> dict[str, RatioInfo]:
    """Ratios of peak memory and of energy; none of an estimate that says no more than the clock."""
    ratios, energy = {}, record.energy
    if record.memory.peak and dense.peak_memory:
        ratios["peak_memory"] = RatioInfo(value=record.memory.peak / dense.peak_memory, reason=_ONCE)
    if energy is not None and energy.raw and len(energy.raw) == len(dense.energy_j) and not energy.is_clock:
        name = "energy" if energy.measured_j and dense.energy_is_measured else "energy_estimated"
        # windows are rounds of all prompts together: [1, rounds]
        windows = paired_ratio(np.array([dense.energy_j]), np.array([energy.raw]))
        ratios[name] = RatioInfo(value=windows.value, reason="windows serve all prompts together: no interval")
    return ratios


def _seconds(requests: Sequence[RequestLine], role: Role, name: _Time) -> Floats | None:
    """Times of every request, [requests, rounds]; None where there are none, or not of every request."""
    times = [request.get(role, {}).get(name) for request in requests]
    return None if not times or any(rounds is None for rounds in times) else np.array(times, dtype=float)


def _ideal_seconds(keys: Collection[Key], costs: CostLines) -> list[float]:
    """Idealized seconds of the documents, 0 where there are none."""
    return [costs[key].get("ideal_s", 0.0) if key in costs else 0.0 for key in keys]


def _request_seconds(keys: Collection[Key], costs: CostLines) -> dict[tuple[Key, int, int, int], float]:
    """Idealized seconds of the measured requests, by document, place in it, and tokens read and written."""
    return {
        (key, place, request["prompt_tokens"], request["new_tokens"]): request["ideal_s"]
        for key in keys
        for place, request in enumerate(costs[key].get("requests", ()) if key in costs else ())
        if "ideal_s" in request
    }


def _is_positive(*seconds: float) -> bool:
    return all(0 < value < math.inf for value in seconds)


def _of_totals(dense: Sequence[float], method: Sequence[float]) -> Ratio | None:
    """The ratio of sums over documents, in their order; None unless every document has a positive number."""
    before, after = np.array(dense, dtype=float), np.array(method, dtype=float)
    return total_ratio(before, after) if (before > 0).all() and (after > 0).all() else None


def _info(ratio: Ratio) -> RatioInfo:
    return RatioInfo(value=ratio.value, low=ratio.low, high=ratio.high, reason=ratio.reason)
