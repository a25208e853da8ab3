"""Dense must give what lm-eval gives: every score, every document, to the last digit."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.silent import Silent
from tests.tiny_gguf import write_gguf

OUTPUT_TYPES = ("tiny_choice", "tiny_letters", "tiny_last", "tiny_answer", "tiny_text")


def harness_results(job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    store = Store(folder)
    (record,) = Session(Job(methods=("dense",), **job), store, Silent()).execute()
    scores = {f"{score.metric},{score.filter}": (score.value, score.stderr) for score in record.scores}
    lines = {line["doc_id"]: line for line in store.find(record.id).samples()}
    return scores, lines


def lm_eval_results(job: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    args = job.get("model_args", {"dtype": "float32"})
    lm = HFLM(pretrained=job["pretrained"], device=job["device"], batch_size=job["batch_size"], **args)
    manager = TaskManager(include_path=job["include_path"], include_defaults=False)
    (task,) = job["tasks"]
    results = simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, limit=job.get("limit"), num_fewshot=job.get("num_fewshot")
    )
    metrics = results["results"][task]
    scores = {
        key: (value, metrics[f"{key.partition(',')[0]}_stderr,{key.partition(',')[2]}"])
        for key, value in metrics.items()
        if "," in key and "_stderr" not in key
    }
    scores = {key: (value, None if stderr == "N/A" else stderr) for key, (value, stderr) in scores.items()}
    return scores, results["samples"][task]


@pytest.mark.parametrize("task", OUTPUT_TYPES)
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.usefixtures("no_survey")
def test_dense_equals_lm_eval(
    task: str,
    batch_size: int,
    tiny_folder: Path,
    tiny_tasks: Path,
    tmp_path: Path,
    device: str,
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue("monkeypatch").setenv("DISABLE_MULTIPROC", "1")
    if batch_size > 1:  # as many samples as lm-eval takes are compared once
        request.getfixturevalue("few_resamples")
    job = {
        "tasks": (task,),
        "pretrained": str(tiny_folder),
        "include_path": str(tiny_tasks),
        "batch_size": batch_size,
        "device": device,
    }
    harness_scores, harness_lines = harness_results({**job, "model_args": {"dtype": "float32"}}, tmp_path)
    lm_eval_scores, lm_eval_samples = lm_eval_results(job)
    assert harness_scores == lm_eval_scores
    for sample in lm_eval_samples:
        line = harness_lines[sample["doc_id"]]
        plain = json.loads(json.dumps(sample, default=str))
        assert line["responses"] == plain["resps"]
        assert line["filtered"][sample["filter"]] == plain["filtered_resps"]
        assert [line[key] for key in ("doc_hash", "prompt_hash", "target_hash")] == [
            sample[key] for key in ("doc_hash", "prompt_hash", "target_hash")
        ]
        for metric in sample["metrics"]:
            assert line["scores"][f"{metric},{sample['filter']}"] == plain[metric]


@pytest.mark.usefixtures("no_survey", "few_resamples")
def test_a_gguf_file_equals_lm_evals_own_run_of_it(
    tiny_tasks: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="the reader is here where pip install '.[gguf]' has been")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf")
    job = {
        "tasks": ("tiny_answer",),
        "pretrained": str(tmp_path),
        "model_args": {"gguf_file": "m.gguf"},
        "include_path": str(tiny_tasks),
        "batch_size": 2,
        "limit": 6,
        "device": device,
    }
    harness_scores, harness_lines = harness_results(job, tmp_path / "by_folder")
    lm_eval_scores, lm_eval_samples = lm_eval_results(job)
    assert harness_scores == lm_eval_scores
    for sample in lm_eval_samples:
        assert harness_lines[sample["doc_id"]]["responses"] == json.loads(json.dumps(sample["resps"]))
    by_file = {**job, "pretrained": str(tmp_path / "m.gguf"), "model_args": {}}
    run = Session(Job(methods=("dense",), **by_file), Store(tmp_path / "by_folder"), Silent()).plan.specs[0]
    assert Store(tmp_path / "by_folder").find(run.id).finished  # the same run, whichever way it is asked for
