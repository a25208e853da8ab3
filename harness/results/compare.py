"""Two finished runs on the same documents: differences of scores and ratios of costs, each with its interval."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from harness.core.errors import HarnessError, UnlikeRunsError
from harness.results.costs import Baseline, RatioInfo
from harness.results.documents import answer, mean, statistic_of, values_of
from harness.results.record import RunRecord
from harness.results.scores import PairedScore, Score
from harness.results.stats.paired import Z_95, Difference, difference, holm, statistic_difference, wilson
from harness.results.stats.ratio import Ratio, total_ratio
from harness.results.store import RunFolder

MARGIN: Final = 0.01
"""Loss of a score, in its own unit, that non-inferiority must exclude."""
Key = tuple[str, int, str]
Line = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Run B against run A.

    Attributes:
        scores: B's scores, each with its difference to A's.
        baseline: ratios of B's costs to A's.
        unlike: settings in which the two differ, as "what: A's, B's".
    """

    a: RunRecord
    b: RunRecord
    scores: list[Score]
    baseline: Baseline
    unlike: list[str] = field(default_factory=list)


def compare(a: RunFolder, b: RunFolder, *, margin: float = MARGIN) -> Comparison:
    """Compare two stored runs.

    Raises:
        StoreError: one cannot be read.
        UnlikeRunsError: they did not answer the same questions.
    """
    first, second = a.record(), b.record()
    reasons = _different_questions(first, second)
    if reasons:
        raise UnlikeRunsError(
            f"{first.id} and {second.id} cannot be compared, they differ in:\n  " + "\n  ".join(reasons)
        )
    lines = by_key(first.id, a.samples()), by_key(second.id, b.samples())
    scores, baseline = paired(first, second, *lines, margin=margin)
    return Comparison(first, second, scores, baseline, _other_settings(first, second))


def paired(
    a: RunRecord, b: RunRecord, a_lines: dict[Key, Line], b_lines: dict[Key, Line], *, margin: float = MARGIN
) -> tuple[list[Score], Baseline]:
    """B's scores with their differences to A's, and the ratios of what was counted and modelled.

    Raises:
        UnlikeRunsError: the two share no document.
    """
    keys = [key for key in b_lines if key in a_lines]
    if not keys:
        raise UnlikeRunsError(f"{a.id} and {b.id} have no document in common")
    values = {(score.task, score.metric, score.filter): score for score in a.scores}
    scores = []
    for score in b.scores:
        base = values.get((score.task, score.metric, score.filter))
        change = _change(base, score, [a_lines[key] for key in keys], [b_lines[key] for key in keys], margin)
        scores.append(score.model_copy(update={"vs_baseline": change}))
    pairs = [(a_lines[key], b_lines[key]) for key in keys]
    baseline = Baseline(
        run_id=a.id,
        documents=len(keys),
        ratios=_ratios(a, b, pairs),
        answers_changed=_changed([(answer(x), answer(y)) for x, y in pairs]),
        output_tokens=_share([x["output_tokens"] for x, _ in pairs], [y["output_tokens"] for _, y in pairs]),
    )
    return _adjusted(scores), baseline


def by_key(run: object, lines: Iterable[Line]) -> dict[Key, Line]:
    """A run's documents by task, number and content.

    Raises:
        HarnessError: a line is not one of a run's.
    """
    try:
        return {(line["task"], line["doc_id"], line["doc_hash"]): _checked(line) for line in lines}
    except (KeyError, TypeError) as error:
        raise HarnessError(f"the samples of {run} are not those of a run: {error} in a line") from error


def with_intervals(scores: Sequence[Score], lines: Sequence[Line]) -> list[Score]:
    """The scores with their 95 % intervals: Wilson's for shares of right answers, else from the standard error."""
    found = []
    for score in scores:
        values = values_of(score, lines)
        low = high = None
        if score.value is not None and values is not None and statistic_of(score, values) is mean:
            right = values[:, 0]
            if set(np.unique(right)) <= {0.0, 1.0}:
                low, high = wilson(int(right.sum()), len(right))
        if low is None and score.value is not None and score.stderr is not None:
            low, high = score.value - Z_95 * score.stderr, score.value + Z_95 * score.stderr
        found.append(score.model_copy(update={"low": low, "high": high}))
    return found


def _change(
    base: Score | None, score: Score, a: Sequence[Line], b: Sequence[Line], margin: float
) -> PairedScore | None:
    if base is None or base.value is None or score.value is None:
        return None
    difference_of_scores = score.value - base.value
    ours, theirs = values_of(score, b), values_of(base, a)
    statistic = None if ours is None else statistic_of(score, ours)
    if ours is None or theirs is None or statistic is None or len(ours) != len(theirs) or len(ours) < 2:
        reason = "too few documents" if ours is not None and len(ours) < 2 else "the score is no sum over documents"
        return PairedScore(difference=difference_of_scores, n=score.n, reason=reason)
    found = difference(theirs[:, 0], ours[:, 0]) if statistic is mean else statistic_difference(theirs, ours, statistic)
    return _described(found, margin, higher_is_better=score.higher_is_better is not False)


def _described(found: Difference, margin: float, *, higher_is_better: bool) -> PairedScore:
    return PairedScore(
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        test=found.test,
        n=found.n,
        gained=found.gained,
        lost=found.lost,
        detectable=found.detectable,
        margin=margin,
        noninferior=found.noninferior(margin, higher_is_better=higher_is_better),
    )


def _adjusted(scores: list[Score]) -> list[Score]:
    """Adjust the p-values of the same metric on several tasks for their number."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, score in enumerate(scores):
        if score.vs_baseline is not None and score.vs_baseline.p is not None:
            families[score.metric, score.filter].append(index)
    adjusted = list(scores)
    for members in families.values():
        found = [scores[index].vs_baseline for index in members]
        for index, old, p in zip(members, found, holm([one.p or 0.0 for one in found if one]), strict=True):
            assert old is not None
            adjusted[index] = scores[index].model_copy(update={"vs_baseline": old.model_copy(update={"p_adjusted": p})})
    return adjusted


def _ratios(a: RunRecord, b: RunRecord, pairs: list[tuple[Line, Line]]) -> dict[str, RatioInfo]:
    """Ratios of what does not depend on the moment: counted work, memory, idealized time on the same profile."""
    found: dict[str, Ratio | float | None] = {"flops": _total(pairs, "flops")}
    for name, ours, theirs in (
        ("weight_bytes", b.flops.weight_bytes, a.flops.weight_bytes),
        ("kv_bytes", b.flops.kv_bytes, a.flops.kv_bytes),
        ("weights", b.memory.weights, a.memory.weights),
        ("kv_peak", b.memory.kv_peak, a.memory.kv_peak),
    ):
        found[name] = ours / theirs if theirs else None
    ideal = [record.time.ideal if record.time else None for record in (a, b)]
    if ideal[0] and ideal[1] and ideal[0].profile == ideal[1].profile:
        found["ideal_ref"] = _total(pairs, "ideal_s")
        own = ideal[1].own_s
        found["ideal_own"] = None if own is None else own / ideal[0].ref_s
    for name in (a.time.roofline if a.time else {}).keys() & (b.time.roofline if b.time else {}).keys():
        assert a.time is not None
        assert b.time is not None
        found[f"roofline:{name}"] = b.time.roofline[name].seconds / a.time.roofline[name].seconds
    return {name: ratio_info(ratio) for name, ratio in found.items() if ratio is not None}


def ratio_info(ratio: Ratio | float) -> RatioInfo:
    """A ratio as the record has it."""
    if isinstance(ratio, float):
        return RatioInfo(value=ratio)
    return RatioInfo(value=ratio.value, low=ratio.low, high=ratio.high)


def _total(pairs: list[tuple[Line, Line]], name: str) -> Ratio | None:
    dense, method = (np.array([pair[side].get(name) or 0.0 for pair in pairs], dtype=float) for side in (0, 1))
    return total_ratio(dense, method) if (dense > 0).all() and (method > 0).all() else None


def _changed(answers: list[tuple[Any, Any]]) -> float | None:
    """Share of the answers that differ; None unless all are answers."""
    if any(one is None for pair in answers for one in pair):
        return None
    return len([1 for a, b in answers if a != b]) / len(answers)


def _share(dense: list[int], method: list[int]) -> float | None:
    return sum(method) / sum(dense) if sum(dense) else None


def _checked(line: Line) -> Line:
    for name in ("scores", "flops", "output_tokens"):
        line[name]
    return line


def _different_questions(a: RunRecord, b: RunRecord) -> list[str]:
    """Settings that make the documents, prompts or answers other ones."""
    same = (
        "task",
        "num_fewshot",
        "data",
        "gen_kwargs",
        "apply_chat_template",
        "system_instruction",
        "samples",
        "limit",
    )
    pairs = [(name, getattr(a.evaluation, name), getattr(b.evaluation, name)) for name in same]
    return [f"{name}: {x!r} and {y!r}" for name, x, y in pairs if x != y]


def _other_settings(a: RunRecord, b: RunRecord) -> list[str]:
    """Settings that are worth saying, though the documents are the same."""
    pairs = [
        ("model", a.model.name, b.model.name),
        ("weights", a.model.fingerprint, b.model.fingerprint),
        ("dtype", a.model.dtype, b.model.dtype),
        ("batch size", a.evaluation.batch_size, b.evaluation.batch_size),
        ("device", a.environment.device_name, b.environment.device_name),
        ("threads", a.environment.threads, b.environment.threads),
        ("versions", a.environment.versions, b.environment.versions),
    ]
    return [f"{name}: {x} and {y}" for name, x, y in pairs if x != y]


def compared(record: RunRecord, lines: Iterable[dict[str, Any]], baseline: RunFolder) -> RunRecord:
    """The record with its differences to the dense run of the same documents.

    Raises:
        StoreError: the dense run cannot be read.
        HarnessError: it has none of the documents.
    """
    dense = baseline.record()
    ours, theirs = by_key(record.id, lines), by_key(baseline.path, baseline.samples())
    if not ours.keys() & theirs.keys():
        raise HarnessError(f"{baseline.path} has none of this run's documents: compute it again with --no_resume")
    scores, found = paired(dense, record, theirs, ours)
    if record.baseline is not None:  # what was measured beside dense stays
        found = found.model_copy(
            update={"ratios": {**record.baseline.ratios, **found.ratios}, "noise": record.baseline.noise}
        )
    return record.model_copy(update={"scores": scores, "baseline": found})
