"""What a run says of dense, beside what dense's own run says: the same tasks, scores and model, and dense's work."""

from collections.abc import Iterator, Mapping
from math import isclose
from typing import Any, Final

from harness.leaderboard.case import Case
from harness.reports.columns import at

_OTHER_TEXTS: Final = 2.0
"""Dense's work for a token of other texts differs by less than this factor."""
_OTHER_READS: Final = 1.5
"""Weights that dense reads in a forward of other texts; more than few tokens hit of the experts."""
_EXACT: Final = 0.1
"""Share of answers that rounding may change in a method that is to write what dense writes."""
_SAME_MODEL: Final = ("name", "pretrained", "parameters", "active_parameters", "license")
_SCORES: Final = ("task", "metric", "filter", "n", "higher_is_better")
_WORK: Final = {
    "flops/dense_equivalent": "flops/total",
    "flops/dense_weight_bytes": "flops/weight_bytes",
    "flops/dense_kv_bytes": "flops/kv_bytes",
    "memory/dense_kv_peak": "memory/kv_peak",
}
"""What a run says of dense on its own tokens, and where dense's run says it of dense's."""


def same_questions(case: Case, dense: Case) -> Iterator[str]:
    """Both runs have the same tasks as configured, the same scores, and one model."""
    run, base = case.record, dense.record
    if case.manifest.get("tasks") != dense.manifest.get("tasks"):
        yield "its tasks are configured otherwise than those of its dense run"
    scores = [{tuple(score[name] for name in _SCORES) for score in each["scores"]} for each in (run, base)]
    if scores[0] != scores[1]:
        shown = sorted(str(score) for score in scores[0] ^ scores[1])
        yield f"its scores are not those of its dense run: {len(shown)} are in one of the two alone, such as {shown[0]}"
    if run["model"].get("base") is None:
        for name in _SAME_MODEL:
            if run["model"].get(name) != base["model"].get(name):
                yield f"its dense run has {name} {base['model'].get(name)!a:.60}, not {run['model'].get(name)!a:.60}"
    changed = at(run, "baseline/answers_changed")
    if run["method"]["exact"] and changed is not None and changed > _EXACT:
        yield f"it is said to write what dense writes, and {changed:.1%} of the answers changed"


def dense_work(case: Case, dense: Case) -> Iterator[str]:
    """What dense would have done for the run's tokens is what it did, where the tokens are the same, else near it."""
    run, base = case.record, dense.record
    if run["evaluation"].get("score_mode") != base["evaluation"].get("score_mode") or run["model"].get("base"):
        return
    weights = at(run, "memory/dense_weights")
    if weights is not None and weights != base["memory"]["weights"]:
        yield f"dense's weights are said to have {weights:,} bytes, {base['memory']['weights']:,} in its own run"
    is_scored = not run["trace"]["output_tokens"] and not base["trace"]["output_tokens"]
    same = is_scored and all(run["trace"][name] == base["trace"][name] for name in ("pad_tokens", "forwards"))
    tokens = [at(each, "trace/layer_tokens_total") for each in (run, base)]
    for stated, own in _WORK.items():
        claim, of_dense = at(run, stated), at(base, own)
        if claim is None or of_dense is None:
            if case.renewed and of_dense is not None and run["flops"] is not None:
                yield f"{stated.replace('/', '.')} is not stated"
        elif same and not isclose(claim, of_dense, rel_tol=1e-3):
            yield f"{stated.replace('/', '.')} is {claim:,}, and dense's own run has {of_dense:,} for the same tokens"
        elif stated == "flops/dense_equivalent" and all(tokens) and run.get("drafts") is None:
            ratio = _ratio(claim / tokens[0], of_dense / tokens[1])
            if ratio > _OTHER_TEXTS:
                yield f"{stated.replace('/', '.')} is {claim:,}: {ratio:.3g} times off dense's for a token"
    reads = [_bytes_a_forward(run, "dense_weight_bytes"), _bytes_a_forward(base, "weight_bytes")]
    if all(reads) and run.get("drafts") is None and _ratio(*reads) > _OTHER_READS:
        yield f"dense is said to read {reads[0]:,.0f} bytes of weights a forward, {reads[1]:,.0f} in its own run"
    yield from _dense_seconds(run, base, is_same=same)


def _dense_seconds(run: Mapping[str, Any], base: Mapping[str, Any], *, is_same: bool) -> Iterator[str]:
    ours, theirs = at(run, "time/ideal"), at(base, "time/ideal")
    if not is_same or not ours or not theirs or ours["profile"] != theirs["profile"] or ours.get("dense_s") is None:
        return
    if not isclose(ours["dense_s"], theirs["ref_s"], rel_tol=0.05):
        yield f"dense's idealized time is said to be {ours['dense_s']:.4g} s, {theirs['ref_s']:.4g} s in its own run"


def _bytes_a_forward(record: Mapping[str, Any], name: str) -> float:
    moved: int = at(record, f"flops/{name}") or 0
    return moved / max(int(record["trace"]["forwards"]), 1)


def _ratio(first: float, second: float) -> float:
    return max(first, second) / max(min(first, second), 1e-30)
