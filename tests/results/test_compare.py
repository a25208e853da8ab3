"""What single documents say of two runs: intervals, tests, and none of them where the documents say too little."""

from typing import Any

import numpy as np
import pytest

from harness.results.compare import StoredRun, paired
from harness.results.documents import answer, given
from harness.results.intervals import with_intervals
from harness.results.record import RunRecord
from harness.results.scores import PairedScore, Score
from tests.toys import record_json, sample_json


def run(values: Any, metric: str = "acc", digests: list[str] | None = None, **score: Any) -> StoredRun:
    """A run of documents that have these values."""
    values = list(values)
    digests = digests or [f"d{index}" for index in range(len(values))]
    head = record_json()["scores"][0] | {"metric": metric, "value": float(np.mean(values)), "n": len(values)} | score
    lines = [
        sample_json(doc_id=index, doc_hash=digest, scores={f"{metric},none": value})
        for index, (value, digest) in enumerate(zip(values, digests, strict=True))
    ]
    return StoredRun.of(RunRecord.model_validate(record_json(scores=[head])), lines)


def change(dense: StoredRun, method: StoredRun) -> PairedScore:
    (score,), _ = paired(dense, method)
    assert score.vs_baseline is not None
    return score.vs_baseline


def of_itself(stored: StoredRun) -> Score:
    (score,) = with_intervals(stored.record.scores, list(stored.samples.values()))
    return score


def test_a_few_documents_that_did_not_change_leave_all_open() -> None:
    found = change(run([1.0, 0.0, 1.0]), run([1.0, 0.0, 1.0]))
    assert (found.difference, found.noninferior, found.detectable) == (0, False, None)
    assert found.low == pytest.approx(-0.708, abs=0.001)
    assert found.reason == "3 documents: the exact test finds no difference of any size"


def test_what_has_no_interval_is_neither_shown_nor_excluded() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = change(run(values, "loss"), run(values, "loss"))
    assert (found.low, found.high, found.p, found.noninferior) == (None,) * 4
    assert found.reason.startswith("all of 40 documents are alike")


def test_a_document_asked_about_in_several_ways_is_one() -> None:
    """As in a group whose tasks have the same documents under other prompts."""
    digests = [f"d{index}" for index in range(30)] * 4
    dense, method = [1.0] * 120, ([0.0] * 8 + [1.0] * 22) * 4
    clustered = change(run(dense, digests=digests), run(method, digests=digests))
    apart = change(run(dense), run(method))
    assert (clustered.test, apart.test) == ("t", "mcnemar-exact")
    assert clustered.high - clustered.low > 1.7 * (apart.high - apart.low)
    own, of_apart = of_itself(run(method, digests=digests)), of_itself(run(method))
    assert own.high - own.low > 1.7 * (of_apart.high - of_apart.low)


def test_a_few_repeated_rows_of_a_data_set_change_no_test() -> None:
    digests = ["d0", "d0", *(f"d{index}" for index in range(2, 100))]
    found = change(run([1.0] * 100, digests=digests), run([1.0] * 99 + [0.0], digests=digests))
    assert found.test == "mcnemar-exact"


def test_intervals_of_scores_stay_where_scores_can_be() -> None:
    right = of_itself(run([1.0] * 12))
    assert (right.low, right.high) == (pytest.approx(0.758, abs=0.001), pytest.approx(1.0))
    shares = of_itself(run([*np.linspace(0.0, 0.05, 11), 1.0], "f1"))
    assert shares.low == 0
    assert shares.value < shares.high <= 1
    same = of_itself(run([0.5] * 30, "f1"))
    assert (same.low, same.high) == (None, None)


def test_a_score_of_unknown_making_has_student_s_interval_of_its_standard_error() -> None:
    stored = run([[0, 1]] * 12, "f1", value=0.96, stderr=0.03)
    found = of_itself(stored)
    assert (found.low, found.high) == (pytest.approx(0.96 - 2.201 * 0.03, abs=1e-4), 1.0)
    few = of_itself(run([[0, 1]] * 4, "f1", value=0.96, stderr=0.03))
    none = of_itself(run([[0, 1]] * 12, "f1", value=0.96, stderr=0.0))
    assert (few.low, none.low) == (None, None)


def test_a_perplexity_has_an_interval_of_its_own() -> None:
    rng = np.random.default_rng(1)
    logs = rng.normal(-2, 0.5, 60)
    found = of_itself(run(logs, "perplexity", value=float(np.exp(-logs.mean()))))
    error = found.value * logs.std(ddof=1) / 60**0.5
    assert found.low == pytest.approx(found.value - 2.0 * error, rel=0.03)
    assert found.high == pytest.approx(found.value + 2.0 * error, rel=0.03)


def test_costs_say_why_they_have_no_interval() -> None:
    dense, method = run([1.0, 0.0, 1.0]), run([1.0, 0.0, 1.0])
    _, baseline = paired(dense, method)
    flops = baseline.ratios["flops"]
    assert (flops.value, flops.low, flops.reason) == (1.0, None, "3 documents: an interval needs at least 10")


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        # filters of two texts may keep the same of them, the first of them as well as all
        (("so 4", "[invalid]", "4"), ("or 5", "[invalid]", "5"), 1.0),
        (("so 4", "4", "4"), ("or 4", "4", "4"), 1.0),
        (("so 4", "4", "4"), ("so 4", "4", "4"), 0.0),
        ((None, "[invalid]", "4"), (None, "[invalid]", "5"), 1.0),  # lines without what was written
        ((None, "4", "4"), (None, "4", "4"), 0.0),
    ],
)
def test_answers_are_compared_before_filters_drop_a_part_of_them(
    before: tuple[str | None, str, str], after: tuple[str | None, str, str], changed: float
) -> None:
    def answering(text: str | None, strict: str, flexible: str) -> StoredRun:
        filtered = {"strict-match": [strict], "flexible-extract": [flexible]}
        written = {} if text is None else {"responses": [[text]]}
        return StoredRun.of(
            RunRecord.model_validate(record_json()), [sample_json(filtered=filtered, output_tokens=2, **written)]
        )

    assert paired(answering(*before), answering(*after))[1].answers_changed == changed


@pytest.mark.parametrize(
    ("before", "after", "changed"), [([-1.0, -2.0], [-1.5, -2.5], 0.0), ([-1.0, -2.0], [-2.0, -1.0], 1.0)]
)
def test_choices_are_compared_by_what_was_chosen(before: list[float], after: list[float], changed: float) -> None:
    def choosing(likelihoods: list[float]) -> StoredRun:
        pairs = [[value, False] for value in likelihoods]
        line = sample_json(responses=[[pair] for pair in pairs], filtered={"none": pairs})
        return StoredRun.of(RunRecord.model_validate(record_json()), [line])

    assert paired(choosing(before), choosing(after))[1].answers_changed == changed


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([[-1.0, True], [None, False]], None),
        ([[None, False], [None, False]], None),
        ([[-3.0, True], [-2.0, False]], 1),
        ([[None, False]], None),
        ([None, False], None),
        ([[-3.0, True]], True),
        ([-3.0, False], False),
    ],
)
def test_a_likelihood_that_is_no_number_gives_no_answer(kept: list[Any], expected: Any) -> None:
    line = sample_json(filtered={"none": kept})
    assert answer(line) is expected
    assert (given(line) is None) is (expected is None)
