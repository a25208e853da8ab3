"""Why a score is none: which documents, or what aggregation, gave no number."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, SupportsFloat

from harness.evaluate.outcome import leaves
from harness.results.scores import Score

_NAMED = 3  # documents that a reason names


def missing_scores(results: dict[str, Any], scores: Sequence[Score]) -> dict[str, str]:
    """The reason for every score that is none, by its place in the record.

    Args:
        results: of lm-eval's evaluation.
        scores: as the record has them.
    """
    return {
        f"scores.{score.task}.{score.metric},{score.filter}": _reason(score, results)
        for score in scores
        if score.value is None
    }


def _reason(score: Score, results: dict[str, Any]) -> str:
    broken = [
        f"document {sample['doc_id']} of {leaf}"
        for leaf in leaves(score.task, results)
        for sample in results["samples"].get(leaf, ())
        if sample["filter"] == score.filter and _is_broken(sample.get(score.metric))
    ]
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        return f"the metric is not a finite number in {', '.join(broken[:_NAMED])}{more}"
    value = results["results"][score.task][f"{score.metric},{score.filter}"]
    given = str(value) if isinstance(value, float | str) else f"a {type(value).__name__}"
    return f"the metric's aggregation over the documents gives {given}, and no finite number"


def _is_broken(value: Any) -> bool:
    """Whether a document's metric is a number, and none that can be averaged; a metric may keep other things too."""
    try:
        return isinstance(value, SupportsFloat) and not isfinite(value)
    except (TypeError, ValueError):  # an array of several numbers, a tensor on another device
        return False
