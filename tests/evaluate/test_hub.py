"""Real tasks, unmodified, on a real model: the runs of the README, and equality with lm-eval."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.results.store import RunFolder, Store
from harness.run.session import Session
from harness.run.spec import Job
from tests import kernels_here
from tests.conftest import Harness
from tests.silent import Silent

pytestmark = pytest.mark.hub

MODEL_ARGS = {"dtype": "float32", "max_length": 2048}
# task, documents, generation arguments; 5-shot gsm8k fills the model's positions
REAL = {
    "gsm8k": (3, {"max_gen_toks": 24}),
    "arc_easy": (10, None),
    "hellaswag": (10, None),
    "blimp_passive_1": (20, None),
    "lambada_openai": (20, None),
    "wikitext": (1, None),
}
# task and batch size; every output type at both sizes: test_equality.py
EQUAL = (("gsm8k", 8), ("blimp_passive_1", 1), ("lambada_openai", 8), ("wikitext", 1), ("tinystories_ppl", 8))


@pytest.fixture(autouse=True)
def _prepared_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HOME and HF_HUB_OFFLINE say to a new process."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")


def settings(task: str, stories: Path, hub: Path, device: str, batch_size: int = 1) -> dict[str, Any]:
    limit, generation = REAL.get(task, (3, None))
    return {
        "tasks": (task,),
        "pretrained": str(stories),
        "include_path": str(hub / "lm_eval_tasks"),
        "model_args": MODEL_ARGS,
        "device": device,
        "limit": limit,
        "gen_kwargs": generation,
        "batch_size": batch_size,
    }


@pytest.mark.parametrize("task", ["gsm8k", "hellaswag"])
def test_layer_drop_on_a_real_task(task: str, stories: Path, hub: Path, tmp_path: Path, device: str) -> None:
    job = Job(methods=("layer-drop:unit=attention,count=2",), **settings(task, stories, hub, device))
    dense, dropped = Session(job, Store(tmp_path), Silent()).execute()
    assert len(dropped.method.state[0]["dropped"]) == 2
    assert dropped.trace.executed
    assert dropped.trace.mean_depth_prefill == pytest.approx(0.8)
    assert dropped.flops.total < dropped.flops.dense_equivalent
    assert dropped.flops.audit_ratio == dense.flops.audit_ratio == 1
    assert dropped.baseline is not None
    assert dropped.baseline.documents == job.limit == dropped.scores[0].n
    assert all(0 <= score.value <= 1 for score in dropped.scores if score.value is not None)


def test_early_exits_on_a_real_task(stories: Path, hub: Path, tmp_path: Path, device: str) -> None:
    """5-shot gsm8k: tokens exit at decode, and the prompt is read in full."""
    methods = ("mue:quantile=0.5,start=0.2", "calm:confidence=saturation,threshold=0.8,every=1")
    job = Job(methods=methods, **settings("gsm8k", stories, hub, device))
    _, *records = Session(job, Store(tmp_path), Silent()).execute()
    for record in records:
        assert record.trace.mean_depth_prefill == 1
        assert record.trace.mean_depth_decode < 1
        assert record.flops.audit_ratio == 1
        assert record.method.savings == "real"


def test_compressed_weights_on_a_real_task(stories: Path, hub: Path, tmp_path: Path, device: str) -> None:
    """Calibrated on the task's training questions; each says truly whether it saves anything here."""
    small = "samples=4,length=64"
    methods = ("int8-dynamic", f"wanda:{small}", "magnitude", f"block-sparse:sparsity=0.5,{small}")
    job = Job(methods=methods, **settings("arc_easy", stories, hub, device))
    with kernels_here.timed(tmp_path / "times"):
        _, int8, *pruned, sparse = Session(job, Store(tmp_path), Silent()).execute()
    assert int8.flops.total == int8.flops.dense_equivalent
    assert [record.method.savings for record in pruned] == ["simulated", "simulated"]
    dense_product = any("dense" in kernel for kernel in (*int8.method.kernels, *sparse.method.kernels))
    assert dense_product or (int8.method.savings, sparse.method.savings) == ("real", "real")
    assert sparse.flops.total < (1.01 if dense_product else 0.9) * sparse.flops.dense_equivalent
    for record in (int8, *pruned, sparse):
        assert record.flops.audit_ratio == 1
        assert record.scores[0].n == job.limit


@pytest.mark.parametrize(("task", "batch_size"), EQUAL)
@pytest.mark.usefixtures("no_survey")
def test_dense_equals_lm_eval(
    task: str, batch_size: int, stories: Path, hub: Path, tmp_path: Path, device: str
) -> None:
    job = settings(task, stories, hub, device, batch_size)
    (record,) = Session(Job(methods=("dense",), **job), Store(tmp_path), Silent()).execute()
    metrics, samples = lm_eval_results(job)
    for score in record.scores:
        assert score.value == metrics[f"{score.metric},{score.filter}"]
        stderr = metrics[f"{score.metric}_stderr,{score.filter}"]
        assert score.stderr == (None if stderr == "N/A" else stderr)
    assert len(record.scores) == sum("," in name and "_stderr" not in name for name in metrics)
    assert_same_documents(Store(tmp_path).find(record.id), samples)


def lm_eval_results(job: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The installed lm-eval's own scores and samples."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (task,) = job["tasks"]
    results = simple_evaluate(
        model=HFLM(**{name: job[name] for name in ("pretrained", "device", "batch_size")}, **job["model_args"]),
        tasks=[task],
        task_manager=TaskManager(include_path=_folder(task, job["include_path"]), include_defaults=False),
        limit=job["limit"],
        gen_kwargs=job["gen_kwargs"],
    )
    return results["results"][task], results["samples"][task]


def _folder(task: str, include_path: str) -> str:
    """Where the task's YAML lies: lm-eval's full index costs more than the evaluation."""
    import lm_eval.tasks

    if task.startswith("tinystories"):
        return include_path
    return str(Path(lm_eval.tasks.__file__).parent / task.partition("_")[0])


def assert_same_documents(folder: RunFolder, samples: list[dict[str, Any]]) -> None:
    lines = {line["doc_id"]: line for line in folder.samples()}
    assert {sample["doc_id"] for sample in samples} == lines.keys()
    for sample in samples:
        line, plain = lines[sample["doc_id"]], json.loads(json.dumps(sample, default=str))
        assert line["responses"] == plain["resps"]
        assert line["filtered"][sample["filter"]] == plain["filtered_resps"]
        assert line["prompt_hash"] == sample["prompt_hash"]
        for metric in sample["metrics"]:
            assert line["scores"][f"{metric},{sample['filter']}"] == plain[metric]


def test_command_line_on_the_prepared_cache(harness: Harness, stories: Path) -> None:
    arguments = ["--method", "layer-drop:count=1", "--task", "gsm8k", "--limit", 2, "--pretrained", stories]
    short = ["--gen_kwargs", "max_gen_toks=8", "--model_args", "max_length=2048", "--json"]
    assert [record["method"]["name"] for record in harness("run", *arguments, *short).json()] == ["dense", "layer-drop"]


def test_dr_llm_on_a_real_task(stories: Path, hub: Path, tmp_path: Path, device: str) -> None:
    """Search, training, evaluation, and the controls, on solutions that no small model writes word for word."""
    job = settings("gsm8k", stories, hub, device) | {"num_fewshot": 0, "limit": 2}
    routed = "dr-llm:goal=likelihood,questions=6,simulations=6,stop_early=false,epochs=20"
    methods = (routed, "random-skip:executed=0.8,first=1,last=0", "static-path:goal=likelihood,skip=1,questions=6")
    dense, *records = Session(Job(methods=methods, **job), Store(tmp_path), Silent()).execute()
    assert [record.method.name for record in records] == ["dr-llm", "random-skip", "static-path"]
    state = records[0].method.state[0]
    assert (state["goal"], state["questions"], state["kept"]) == ("likelihood", 6, 6)
    assert all(record.baseline.run_id == dense.id and record.routes is not None for record in records)
    assert records[0].flops.parts["router"] > 0
    assert records[2].flops.total < dense.flops.total
