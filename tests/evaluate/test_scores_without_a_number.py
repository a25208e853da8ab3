"""A score that is none says in the record which documents, or what aggregation, gave no number."""

import json
from pathlib import Path

import pytest

from harness.evaluate.missing_scores import missing_scores
from harness.results.scores import Score
from tests.conftest import Harness

FUNCTIONS = """
import math
import numpy

def score(doc, results):
    return {
        "one": math.nan if doc["n"] == 1 else 1.0,
        "all": numpy.float32("inf"),
        "pair": 1.0,
        "word": 1.0,
        "sum": 1.0,
        "zero": numpy.float64(0.5),
        "fine": numpy.float32(0.5),
    }

def pair(items):
    return {"a": 1.0}

def word(items):
    return "many"

def infinite(items):
    return math.inf
"""
AGGREGATIONS = {
    "one": "mean",
    "all": "mean",
    "pair": "!function own.pair",
    "word": "!function own.word",
    "sum": "!function own.infinite",
    "zero": "mean",
    "fine": "mean",
}


def test_every_score_that_is_none_has_its_reason(harness: Harness, tiny: list[object], tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps({'n': number})}\n" for number in range(5)))
    (tmp_path / "own.py").write_text(FUNCTIONS)
    metrics = "".join(
        f"  - {{metric: {name}, aggregation: {how}, higher_is_better: true}}\n" for name, how in AGGREGATIONS.items()
    )
    (tmp_path / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/own.jsonl}}}}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: 'the {{n}}'\ndoc_to_target: ' x'\n"
        f"process_results: !function own.score\nmetric_list:\n{metrics}"
    )
    (tmp_path / "group.yaml").write_text(
        "group: both\ntask: [own]\naggregate_metric_list:\n  - {metric: one, aggregation: mean}\n"
    )
    (record,) = harness("run", *tiny, "--include_path", tmp_path, "--task", "both", "--json").json()
    values = {f"{score['task']}.{score['metric']}": score["value"] for score in record["scores"]}
    assert {name for name, value in values.items() if value is not None} == {"own.zero", "own.fine"}
    reasons = {name: why for name, why in record["missing"].items() if name.startswith("scores.")}
    assert reasons == {
        "scores.both.one,none": "the metric is not a finite number in document 1 of own",
        "scores.own.one,none": "the metric is not a finite number in document 1 of own",
        "scores.own.all,none": "the metric is not a finite number in document 0 of own, document 1 of own, document 2 "
        "of own and 2 more",
        "scores.own.pair,none": "the metric's aggregation over the documents gives a dict, and no finite number",
        "scores.own.word,none": "the metric's aggregation over the documents gives many, and no finite number",
        "scores.own.sum,none": "the metric's aggregation over the documents gives inf, and no finite number",
    }
    limited = harness("run", *tiny, "--include_path", tmp_path, "--task", "own", "--samples", '{"own":[1,3]}', "--json")
    assert "document 1 of own" in limited.json()[0]["missing"]["scores.own.one,none"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "nan"), ("N/A", "N/A"), ([1.0], "a list"), (None, "a NoneType"), (1j, "a complex")],
)
def test_what_an_aggregation_gave_is_said(value: object, said: str) -> None:
    results = {
        "results": {"t": {"m,f": value}},
        "samples": {"t": [{"doc_id": 0, "filter": "f", "metrics": ["m"], "m": (0.5, 2)}]},
    }
    score = Score(task="t", metric="m", filter="f", value=None, stderr=None, n=1, higher_is_better=None)
    assert said in missing_scores(results, [score])["scores.t.m,f"]
    assert missing_scores(results, [score.model_copy(update={"value": 1.0})]) == {}
