"""A run beside its dense run: everything that the record says of the two, computed again from both of their files."""

from collections.abc import Iterator, Mapping, Sequence
from math import isclose, sqrt
from statistics import median
from typing import Any, Final

from harness.core.errors import HarnessError
from harness.leaderboard.aggregates import standard_error
from harness.leaderboard.case import Case
from harness.leaderboard.evidence import answer_text, key
from harness.reports.columns import at
from harness.results.compare import StoredRun, paired
from harness.results.cost_lines import requests_of
from harness.results.documents import values_of
from harness.results.intervals import with_intervals
from harness.results.ratios import MEASURED, beside_dense
from harness.results.record import UNSAID
from harness.results.samples import SampleLine
from harness.results.scores import Score

_EXACT: Final = ("difference", "p", "p_adjusted", "test", "n", "gained", "lost", "margin")
_BOUNDS: Final = ("low", "high")
_OF_WIDTH: Final = 0.03
"""Share of an interval's width by which a bound may differ: another release of a library draws other samples."""
_OF_WIDTH_BEFORE: Final = 0.25  # of ratios of older runs, which had fewer draws
_Z, _Z_POWER = 1.959963984540054, 0.8416212335729143  # normal quantiles, of 97.5 % and of 80 %
_APART: Final = 4.0
"""Between two passes on one machine, times and memory differ by less than this factor."""
_MAY_DIFFER: Final = {"batch_size", "limited"}
_SAME_MACHINE: Final = ("device", "device_name", "cpu_model", "cpus", "threads", "python", "versions", "instructions")
_SAME_MODEL: Final = ("dtype", "attention", "layout", "layers", "revision")


def own_intervals(case: Case) -> Iterator[str]:
    """The scores' intervals are those of the documents."""
    run = case.stored
    for stated, computed in zip(
        run.record.scores, with_intervals(run.record.scores, [*run.samples.values()]), strict=True
    ):
        name = f"{stated.task} {stated.metric},{stated.filter}"
        yield from _bounds(name, stated.model_dump(), [computed.model_dump()])


def against_dense(case: Case, dense: Case) -> Iterator[str]:
    """Differences, intervals, tests, ratios and numbers of documents are those of the two runs' files."""
    run, base = case.stored, dense.stored
    try:
        scores, baseline = paired(base, run)
    except HarnessError as error:
        yield str(error)
        return
    for stated, computed in zip(run.record.scores, scores, strict=True):
        name = f"{stated.task} {stated.metric},{stated.filter}"
        if stated.vs_baseline is None or computed.vs_baseline is None:
            if stated.vs_baseline is not computed.vs_baseline:
                known, has = ("no" if each.vs_baseline is None else "a" for each in (stated, computed))
                yield f"{name}: {known} difference to dense is stated, and the two runs give {has.replace('a', 'one')}"
            continue
        claim, files = stated.vs_baseline.model_dump(), computed.vs_baseline.model_dump()
        computations = [files]
        if not case.renewed and (former := _normal(stated, [*base.samples.values()], [*run.samples.values()])):
            computations.append(files | former)
        yield from _paired(name, claim, computations, rises=stated.higher_is_better is not False)
    claimed = run.record.baseline
    assert claimed is not None
    for field in ("documents", "output_tokens"):
        of_record, of_files = getattr(claimed, field), getattr(baseline, field)
        if not _same(of_record, of_files):
            yield f"baseline.{field}: the record says {of_record}, the two runs say {of_files}"
    yield from _answers(case, dense, claimed.answers_changed, baseline.answers_changed)
    stated_ratios = {name: ratio.model_dump() for name, ratio in claimed.ratios.items()}
    counted = {name: ratio.model_dump() for name, ratio in baseline.ratios.items()}
    of_files = {n: r for n, r in stated_ratios.items() if n not in MEASURED}
    if case.renewed:
        yield from _ratios(of_files, counted)
    else:  # older versions made fewer ratios and intervals
        shown = {name: _without_bounds(ratio, of_files[name]) for name, ratio in counted.items() if name in of_files}
        yield from _ratios(of_files, shown, _OF_WIDTH_BEFORE)
    yield from _measured(case, dense, stated_ratios, run)


def same_conditions(case: Case, dense: Case) -> Iterator[str]:
    """Both ran the same model, asked the same, on the same machine with the same software."""
    run, base = case.record, dense.record
    if base["method"]["family"] != "baseline":
        yield "its dense run is no run of dense"
    asked, of_dense = ({**UNSAID, **record["evaluation"]} for record in (run, base))
    if differing := [name for name in asked if name not in _MAY_DIFFER and asked[name] != of_dense.get(name)]:
        shown = ", ".join(f"{name} ({of_dense.get(name)!a:.40}, not {asked[name]!a:.40})" for name in differing[:3])
        what = "scored other documents" if "data" in differing else "was asked something else"
        way = " and was scored in another way (score_mode)" if "score_mode" in differing else ""
        yield f"its dense run {what}{way}: {shown}"
    model, of_dense = run["model"].get("base") or run["model"], base["model"]
    if model["fingerprint"] != of_dense["fingerprint"]:
        yield "its dense run is of another model"
    for name in _SAME_MODEL if run["model"].get("base") is None else ("dtype",):
        if run["model"].get(name) != of_dense.get(name):
            yield f"its dense run has {name} {of_dense.get(name)}, not {run['model'].get(name)}"
    for name in _SAME_MACHINE:
        ours, theirs = run["environment"].get(name), base["environment"].get(name)
        if name == "versions":
            ours, theirs = ({n: v for n, v in each.items() if n != "efficiency-harness"} for each in (ours, theirs))
        if ours != theirs:
            yield f"its dense run was on another machine or software: {name} {theirs!a:.60}, not {ours!a:.60}"
    documents, of_dense = ({key(line): line.get("target") for line in each.samples} for each in (case, dense))
    if documents.keys() != of_dense.keys():
        alone = len(documents.keys() ^ of_dense.keys())
        yield f"its dense run scored other documents: {alone} are in one of the two alone"
    elif other := [name for name, target in documents.items() if str(target)[:120] != str(of_dense[name])[:120]]:
        yield f"{len(other)} documents have another target than in the dense run"


def renamed_dense(case: Case, dense: Case) -> Iterator[str]:
    """A run whose every document is dense's, in answer, score and work, is dense under another name."""
    record, base = case.record, dense.record
    raw = [at(each, "time/latency/raw") for each in (record, base)]
    if raw[0] and raw[0] == raw[1]:
        yield "its latencies are dense's to the last digit: dense's run under another name"
    if record["method"]["family"] == "baseline" or record["trace"]["executed"] is False or record["method"]["kernels"]:
        return  # shown apart as a method that never ran; other kernels may give the same answers
    work = [{name: each[name] for name in ("trace", "flops", "memory")} for each in (record, base)]
    for each in work:
        each["trace"] = {name: value for name, value in each["trace"].items() if name != "executed"}
        each["flops"] = each["flops"] and {n: v for n, v in each["flops"].items() if not n.startswith("audit")}
        each["memory"] = {name: each["memory"].get(name) for name in ("weights", "kv_peak", "kv_per_token")}
    if work[0] != work[1] or len(case.samples) != len(dense.samples):
        return
    of_dense = {key(line): _evidence(line) for line in dense.samples}
    if all(of_dense.get(key(line)) == _evidence(line) for line in case.samples):
        yield "every document has dense's answer, score and work: dense's run under another name"


def _evidence(line: SampleLine) -> tuple[Any, ...]:
    return line["scores"], answer_text(line), line.get("responses"), line["flops"], line["output_tokens"]


def _paired(
    name: str, stated: Mapping[str, Any], computations: Sequence[Mapping[str, Any]], *, rises: bool
) -> Iterator[str]:
    computed = computations[0]
    for field in _EXACT:
        if not _same(stated[field], computed[field]):
            what = "against dense is claimed" if field == "difference" else "is claimed"
            yield f"{name}: {field} {stated[field]} {what}, {computed[field]} is that of the two runs"
    yield from _bounds(f"{name} against dense", stated, computations)
    low, high, margin = stated["low"], stated["high"], stated["margin"]
    excluded = None if low is None or high is None or margin is None else low > -margin if rises else high < margin
    if stated["noninferior"] != excluded:
        yield f"{name}: noninferior {stated['noninferior']} is claimed, its own interval says {excluded}"
    known, least = stated["detectable"], [each["detectable"] for each in computations]
    if not any(_same(known, each, 1e-3) for each in least):
        yield f"{name}: detectable {known} is claimed, {least[0]} is that of so many documents"


def _normal(score: Score, before: Sequence[SampleLine], after: Sequence[SampleLine]) -> dict[str, Any] | None:
    """The normal interval of the mean paired difference, and what it finds in four of five tries: older runs."""
    pairs = [values_of(score, lines) for lines in (before, after)]  # [documents, parts] each
    if pairs[0] is None or pairs[1] is None or pairs[0].shape != pairs[1].shape or pairs[0].shape[1] != 1:
        return None
    change = (pairs[1] - pairs[0])[:, 0]  # [documents]
    error = standard_error(change[:, None]) if len(change) > 1 else 0.0
    center = float(change.mean())
    squared = float((change**2).mean()) / (len(change) / (_Z + _Z_POWER) ** 2 + 1)
    return {"low": center - _Z * error, "high": center + _Z * error, "detectable": sqrt(squared) or None}


def _bounds(
    name: str, stated: Mapping[str, Any], computations: Sequence[Mapping[str, Any]], share: float = _OF_WIDTH
) -> Iterator[str]:
    """Bounds are those of one of the computations, within a share of the interval's width."""
    if not any(_alike(stated, computed, share) for computed in computations):
        claim, files = (_interval(each) for each in (stated, computations[0]))
        yield f"{name}: {claim} is claimed, {files} is that of the documents"


def _alike(stated: Mapping[str, Any], computed: Mapping[str, Any], share: float) -> bool:
    if any(each[bound] is None for each in (stated, computed) for bound in _BOUNDS):
        return all(stated[bound] is computed[bound] is None for bound in _BOUNDS)
    slack = share * (computed["high"] - computed["low"]) + 1e-9 * max(1.0, abs(computed["high"]))
    return all(abs(stated[bound] - computed[bound]) <= slack for bound in _BOUNDS)


def _interval(bounds: Mapping[str, Any]) -> str:
    low, high = ("nothing" if bounds[name] is None else f"{bounds[name]:.6g}" for name in _BOUNDS)
    return "no interval" if low == high == "nothing" else f"the interval [{low}, {high}]"


def _answers(case: Case, dense: Case, stated: float | None, computed: float | None) -> Iterator[str]:
    """The share of changed answers: as computed where both runs have all answers, else no less than is seen."""
    if computed is not None:
        if not _same(stated, computed):
            yield f"baseline.answers_changed: the record says {stated}, the two runs say {computed}"
        return
    of_dense = {key(line): answer_text(line) for line in dense.samples}
    changed = sum(of_dense.get(key(line)) != answer_text(line) for line in case.samples)
    if stated is not None and stated < changed / len(case.samples) - 1e-9:
        yield f"baseline.answers_changed: the record says {stated}, {changed} of {len(case.samples)} answers differ"


def _ratios(stated: Mapping[str, Any], computed: Mapping[str, Any], share: float = _OF_WIDTH) -> Iterator[str]:
    for name in sorted({*stated, *computed}):
        ours, theirs = stated.get(name), computed.get(name)
        if ours is None or theirs is None:
            missing, present = ("no", "has one") if ours is None else ("a", "has none")
            yield f"{missing} ratio of {ascii(name)[1:-1]:.60} is stated, and the pair of runs {present}"
        elif not isclose(ours["value"], theirs["value"], rel_tol=1e-6):
            yield f"{name}: {ours['value']:.6g} of dense is claimed, {theirs['value']:.6g} is the ratio of the two runs"
        else:
            yield from _bounds(f"the ratio of {name}", ours, [theirs], share)


def _without_bounds(computed: Mapping[str, Any], stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was computed, without bounds where none are stated."""
    return {**computed, "low": None, "high": None} if stated["low"] is stated["high"] is None else computed


def _measured(case: Case, dense: Case, stated: Mapping[str, Any], run: StoredRun) -> Iterator[str]:
    """Measured ratios are those of the rounds that both ran; of older runs, which kept none, plausible ones."""
    claimed = {name: ratio for name, ratio in stated.items() if name in MEASURED}
    beside = run.record.baseline.beside if run.record.baseline else None
    bare = run.record.model_copy(update={"baseline": None})
    known, noise = ({n: r.model_dump() for n, r in each.items()} for each in beside_dense(bare, run.costs, beside))
    if known or case.renewed:
        yield from _ratios({n: r for n, r in claimed.items() if n in known or case.renewed}, known)
    if noise:
        claimed_noise = {n: r.model_dump() for n, r in run.record.baseline.noise.items()} if run.record.baseline else {}
        yield from (f"noise: {text}" for text in _ratios(claimed_noise, noise))
    yield from _plausible(case.record, dense.record, claimed)
    yield from _plausible_dense(run, dense)


def _plausible(record: Mapping[str, Any], dense: Mapping[str, Any], claimed: Mapping[str, Any]) -> Iterator[str]:
    """Each measured ratio is near that of the two records, whose passes were at different times."""
    paths = {
        "latency": "time/latency/typical_s",
        "ttft": "time/latency/ttft/median",
        "tpot": "time/latency/tpot/median",
    }
    paths |= {"peak_memory": "memory/peak", "energy": "energy/measured_j", "energy_estimated": "energy/estimated_j"}
    for name, ratio in claimed.items():
        ours, theirs = at(record, paths[name]), at(dense, paths[name])
        if ours is None:
            yield f"a ratio of {name} is stated, and no {name} was measured"
        elif theirs and not 1 / _APART <= ratio["value"] / (ours / theirs) <= _APART:
            claim = f"{name}: {ratio['value']:.4g} of dense is claimed"
            yield f"{claim}, {ours / theirs:.4g} is the ratio of the two records"
        low, high = ratio["low"], ratio["high"]
        if low is not None and high is not None and not low <= ratio["value"] * (1 + 1e-9) <= high * (1 + 2e-9):
            yield f"{name}: a ratio of {ratio['value']:.4g} outside of its own interval"


def _plausible_dense(run: StoredRun, dense: Case) -> Iterator[str]:
    """Dense's times beside the run are near those of dense's own record."""
    times = [
        each for request in requests_of(run.costs.values()) for each in request.get("dense", {}).get("latency", ())
    ]
    own = at(dense.record, "time/latency/end_to_end")
    if not times or not own:
        return
    beside = median(times)
    if not own["min"] / (2 * _APART) <= beside <= own["median"] * 2 * _APART:
        yield f"dense beside it took {beside:.3g} s a request, {own['median']:.3g} s in its own run"


def _same(stated: Any, computed: Any, tolerance: float = 1e-6) -> bool:
    if isinstance(stated, int | float) and isinstance(computed, int | float):
        return isclose(stated, computed, rel_tol=tolerance, abs_tol=1e-9)
    return bool(stated == computed)
