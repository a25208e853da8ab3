"""Two finished runs on the same documents: differences of scores and ratios of costs, each with its interval."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from harness.core.errors import HarnessError, UnlikeRunsError
from harness.results.baseline import Baseline, Beside, same_length
from harness.results.cost_lines import CostLine, CostLines, costs_within
from harness.results.documents import clusters_of, given, mean, statistic_of, values_of
from harness.results.equal_tokens import in_own_forwards, on_equal_tokens
from harness.results.ratios import beside_dense, counted, modelled, reads_otherwise, without_ratio
from harness.results.record import RunRecord
from harness.results.samples import Key, SampleLine, key_of
from harness.results.saving import saving
from harness.results.scores import PairedScore, Score
from harness.results.sources import digest
from harness.results.stats.paired import difference, holm, statistic_difference
from harness.results.store import RunFolder

MARGIN: Final = 0.01
"""Loss of a score, in its own unit, that non-inferiority must exclude."""


@dataclass(frozen=True)
class StoredRun:
    """A run's record with the lines of its documents and of their costs."""

    record: RunRecord
    samples: Mapping[Key, SampleLine]
    costs: CostLines = field(default_factory=dict)

    @classmethod
    def of(cls, record: RunRecord, samples: Iterable[SampleLine], costs: CostLines | None = None) -> Self:
        """A run by its parts."""
        return cls(record, {key_of(line): line for line in samples}, costs or {})

    @classmethod
    def read(cls, folder: RunFolder) -> Self:
        """The run in a folder.

        Raises:
            StoreError: it cannot be read.
        """
        samples = list(folder.samples())
        return cls.of(folder.record(), samples, folder.costs() or costs_within(samples))

    @property
    def packed(self) -> Self:
        """The run whose documents go by the part of their digest that packing keeps."""
        samples: list[SampleLine] = [{**line, "doc_hash": line["doc_hash"][:16]} for line in self.samples.values()]
        costs: list[CostLine] = [{**line, "doc_hash": line["doc_hash"][:16]} for line in self.costs.values()]
        return self.of(self.record, samples, {key_of(line): line for line in costs})


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
        UnlikeRunsError: they did not answer the same questions, or share no document.
    """
    first, second = StoredRun.read(a), StoredRun.read(b)
    if a.packed or b.packed:
        first, second = first.packed, second.packed
    reasons = _different_questions(first.record, second.record)
    if reasons:
        raise UnlikeRunsError(
            f"{first.record.id} and {second.record.id} cannot be compared, they differ in:\n  " + "\n  ".join(reasons)
        )
    scores, baseline = paired(first, second, margin=margin)
    return Comparison(first.record, second.record, scores, baseline, _other_settings(first.record, second.record))


def paired(a: StoredRun, b: StoredRun, *, margin: float = MARGIN) -> tuple[list[Score], Baseline]:
    """B's scores with their differences to A's, and the ratios of what was counted and modelled.

    Raises:
        UnlikeRunsError: the two share no document.
    """
    documents = {key: (a.samples[key], line) for key, line in b.samples.items() if key in a.samples}
    if not documents:
        raise UnlikeRunsError(f"{a.record.id} and {b.record.id} have no document in common")
    pairs = list(documents.values())
    before, after = [line for line, _ in pairs], [line for _, line in pairs]
    base = {(score.task, score.metric, score.filter): score for score in a.record.scores}
    scores = [
        score.model_copy(
            update={
                "vs_baseline": _change(base.get((score.task, score.metric, score.filter)), score, before, after, margin)
            }
        )
        for score in b.record.scores
    ]
    written = sum(line["output_tokens"] for line in before)
    length = sum(line["output_tokens"] for line in after) / written if written else None
    ratios = counted(a.record, b.record, pairs) | modelled(a.record, b.record, documents.keys(), a.costs, b.costs)
    if reads_otherwise(a.record, b.record):
        ratios = in_own_forwards(ratios, a.record, b.record, pairs, b.costs)
    elif not same_length(length):
        ratios = on_equal_tokens(ratios, a.record, b.record, pairs, b.costs)
    return _adjusted(scores), Baseline(
        run_id=a.record.id,
        documents=len(documents),
        ratios=ratios,
        answers_changed=_changed(pairs),
        output_tokens=length,
    )


def compared(run: StoredRun, dense: RunFolder, beside: Beside | None = None) -> RunRecord:
    """The run's record with its differences to the dense run of the same documents.

    Args:
        beside: what dense measured beside the run; the record's own if it was measured before.

    Raises:
        StoreError: the dense run cannot be read.
        HarnessError: it has none of the documents.
    """
    baseline = StoredRun.read(dense)
    if not run.samples.keys() & baseline.samples.keys():
        raise HarnessError(f"{dense.path} has none of this run's documents: compute it again with --no_resume")
    scores, section = paired(baseline, run)
    # dense was measured beside this run, and its times of those rounds are in this run's files
    beside = beside or (run.record.baseline.beside if run.record.baseline else None)
    ratios, noise = beside_dense(run.record, run.costs, beside)
    section = section.model_copy(update={"ratios": ratios | section.ratios, "noise": noise, "beside": beside})
    sources = run.record.sources | {"baseline": digest("baseline")}
    missing = {path: why for path, why in run.record.missing.items() if not path.startswith("baseline.ratios.")}
    missing |= without_ratio(run.record, section, baseline.record)
    changes = {"scores": scores, "baseline": section, "sources": sources, "missing": missing}
    record = run.record.model_copy(update=changes)
    if record.method.declared_real:
        saved = saving(record.model_dump(mode="json"))
        record.method = record.method.model_copy(update={"savings": saved})
    return record


def _change(
    base: Score | None, score: Score, a: Sequence[SampleLine], b: Sequence[SampleLine], margin: float
) -> PairedScore | None:
    if base is None or base.value is None or score.value is None:
        return None
    before, after = values_of(base, a), values_of(score, b)  # [documents, parts]
    statistic = None if after is None else statistic_of(score, after)
    if before is None or after is None or statistic is None or len(before) != len(after) or len(after) < 2:
        reason = "too few documents" if after is not None and len(after) < 2 else "the score is no sum over documents"
        return PairedScore(difference=score.value - base.value, n=score.n, reason=reason)
    clusters = clusters_of(score, b)
    if statistic is mean:
        change = difference(before[:, 0], after[:, 0], clusters)
    else:
        change = statistic_difference(before, after, statistic, clusters)
    return PairedScore(
        difference=change.value,
        low=change.low,
        high=change.high,
        p=change.p,
        test=change.test,
        n=change.n,
        gained=change.gained,
        lost=change.lost,
        detectable=change.detectable,
        margin=margin,
        noninferior=change.noninferior(margin, higher_is_better=score.higher_is_better is not False),
        reason=change.reason,
    )


def _changed(pairs: Sequence[tuple[SampleLine, SampleLine]]) -> float | None:
    """Share of the documents that two runs answered differently; None unless both answered all of them."""
    answers = [(given(before), given(after)) for before, after in pairs]
    if any(answer is None for pair in answers for answer in pair):
        return None
    return len([1 for before, after in answers if before != after]) / len(answers)


def _adjusted(scores: list[Score]) -> list[Score]:
    """Adjust the p-values of the same metric on several tasks for their number."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, score in enumerate(scores):
        if score.vs_baseline is not None and score.vs_baseline.p is not None:
            families[score.metric, score.filter].append(index)
    adjusted = list(scores)
    for members in families.values():
        changes = [change for index in members if (change := scores[index].vs_baseline) is not None]
        for index, change, p in zip(members, changes, holm([change.p or 0.0 for change in changes]), strict=True):
            corrected = change.model_copy(update={"p_adjusted": p})
            adjusted[index] = scores[index].model_copy(update={"vs_baseline": corrected})
    return adjusted


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
        "score_mode",
        "score_suffix",
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
