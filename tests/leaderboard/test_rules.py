"""How rules are applied, and scores computed again from documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard import rules
from harness.leaderboard.aggregates import disagreements, idealized_disagreements
from harness.leaderboard.evidence import answer_text
from harness.leaderboard.results import load
from harness.leaderboard.rules import Case, judge
from tests.leaderboard.generated import groups, runs
from tests.toys import sample_json


def broken(case: Case) -> Iterator[str]:
    yield case.record["no such field"]


def mild(case: Case) -> Iterator[str]:
    yield "worth a look"


def test_a_rule_that_fails_makes_no_error_of_later_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(runs(groups(1, 1, 1)[0])).write(tmp_path)
    monkeypatch.setattr(rules, "ERRORS", ())
    monkeypatch.setattr(rules, "WARNINGS", (broken, mild))
    findings = list(judge(load(folder)))
    assert [(finding.rule, finding.severity) for finding in findings] == [("broken", "error"), ("mild", "warning")]
    assert "KeyError" in findings[0].text


def scored(metric: str, claimed: float | None, values: list[Any], **score: Any) -> dict[str, Any]:
    """A record of one score, and its documents."""
    entry = {"task": "t", "metric": metric, "filter": "none", "value": claimed, "stderr": None, "n": len(values)}
    trace = dict.fromkeys(("prompt_tokens", "output_tokens", "pad_tokens"), 0)
    documents = [sample_json(scores={f"{metric},none": value}, prompt_tokens=0, flops=0) for value in values]
    return {"record": {"scores": [entry | score], "flops": {"total": 0}, "trace": trace}, "documents": documents}


@pytest.mark.parametrize(
    ("aggregation", "value", "values"),
    [
        ("mean", 0.75, [1.0, 0.0, 1.0, True]),
        ("perplexity", 7.38905609893065, [-1.0, -3.0]),
        ("weighted_perplexity", 2.718281828459045, [[-3.0, 2], [-1.0, 2]]),
        ("bits_per_byte", 2.0, [[-1.3862943611198906, 1], [-1.3862943611198906, 1]]),
        ("an aggregation of somebody's own", 12.0, [1.0, 2.0]),
    ],
)
def test_scores_are_computed_again_as_they_were_aggregated(aggregation: str, value: float, values: list[Any]) -> None:
    honest, forged = scored("m", value, values), scored("m", value + 0.01, values)
    assert list(disagreements(**honest, aggregations={"m": aggregation})) == []
    computed = [each.computed for each in disagreements(**forged, aggregations={"m": aggregation})]
    assert computed == ([] if aggregation.startswith("an") else [pytest.approx(value)])


@pytest.mark.parametrize("value", ["1.0", None, {}, [1.0, 2.0]])
def test_a_mean_is_one_of_numbers(value: Any) -> None:
    (disagreement,) = disagreements(**scored("acc", 1.0, [1.0, value]), aggregations={})
    assert disagreement.computed == "no number for a document"


def test_a_mean_has_its_own_error() -> None:
    (disagreement,) = disagreements(**scored("acc", 0.5, [1.0, 0.0, 1.0, 0.0], stderr=0.1), aggregations={})
    assert (disagreement.quantity, disagreement.computed) == (
        "t acc,none, standard error",
        pytest.approx((1 / 12) ** 0.5),
    )


def test_a_group_of_several_tasks_is_not_computed_again() -> None:
    case = scored("acc", 0.9, [1.0, 0.0], task="group")
    assert len(list(disagreements(**case, aggregations={}))) == 1
    case["documents"][1]["task"] = "u"
    assert list(disagreements(**case, aggregations={})) == []


@pytest.mark.parametrize(
    ("filtered", "words"),
    [
        ([[-3.0, False], [-1.0, False]], "choice 1"),
        ([[[-3.0, False], [-1.0, False]]], "choice 1"),
        ([[-1.0, True]], "the target"),
        ([-1.0, False], "not the target"),
        (["a text"], "a text"),
        ("a text", "a text"),
        (-12.0, ""),
    ],
)
def test_answers_in_words(filtered: Any, words: str) -> None:
    assert answer_text({"filtered": {"none": filtered}}) == words
    assert answer_text({"answer": words}) == words


@pytest.mark.parametrize(("claimed", "problems"), [(None, 0), (1.0, 1)])
def test_a_typical_latency_is_that_of_its_measurements(tmp_path: Path, claimed: float | None, problems: int) -> None:
    folder = next(runs(groups(1, 1, 1)[0])).write(tmp_path)
    record = json.loads((folder / "record.json").read_text())
    record["time"]["latency"]["typical_s"] = claimed
    (folder / "record.json").write_text(json.dumps(record))
    assert sum("typical latency" in finding.text for finding in judge(load(folder))) == problems


def test_idealized_seconds_of_requests_are_computed_again() -> None:
    times = [{"latency": [1.0]}] * 3
    requests = [{"run": run, "ideal_s": seconds} for run, seconds in zip(times, (1.0, 5.0, 2.0), strict=True)]
    costs = [{"ideal_s": 4.0, "requests": requests}]
    honest, forged = ({"time": {"ideal": {"ref_s": 4.0, "requests_s": claimed}}} for claimed in (2.0, 1.0))
    assert list(idealized_disagreements(honest, costs)) == []
    assert [each.computed for each in idealized_disagreements(forged, costs)] == [2.0]
