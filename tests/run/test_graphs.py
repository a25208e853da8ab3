"""Times of captured steps in the record, on a CPU: steps are played by running them again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.graph import refusal
from harness.run.lacking import lacking
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.captures import Failing, Replayed, Stuck
from tests.conftest import Harness
from tests.silent import Silent

PLAN = CostPlan(
    measure={"flops", "latency", "graph"}, prompts=2, rounds=2, warmup=0, new_tokens=3, accelerators=("l4",)
)
GRAPHS = PLAN.model_copy(update={"measure": frozenset({"graph"})})
METHODS = ("layer-drop:layers=1", "mue:threshold=0.5")


@pytest.fixture(scope="module")
def job(tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(methods=METHODS, tasks=("tiny_answer",), limit=2, costs=PLAN)


def run(job: Job, folder: Path, *captures: object) -> dict[str, RunRecord]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.run.graph.ways", lambda device: list(captures))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # a second each
        records = Session(job, Store(folder), Silent()).execute()
    return {record.method.name: record for record in records}


@pytest.fixture(scope="module")
def records(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    return run(job, tmp_path_factory.mktemp("graphs"), Replayed)


def test_captured_steps_are_a_regime_of_their_own(records: dict[str, RunRecord]) -> None:
    dense, dropped = (records[name].time for name in ("dense", "layer-drop"))
    assert dense
    assert dropped
    for time in (dense, dropped):
        assert time.graph
        assert time.latency
        assert (time.graph.regime, time.latency.regime) == ("graph", "one request")
        assert (time.graph.captured_by, time.graph.reads) == ("cuda graph", True)
        assert time.graph.differences == 0 < time.graph.tokens
        assert [len(rounds) for rounds in time.graph.run.latency] == [2, 2]
        assert time.graph.typical.keys() == {"latency", "ttft", "tpot"}
        assert time.latency.raw != time.graph.run.latency
    assert dense.graph
    assert dropped.graph
    assert dense.graph.dense is None
    assert not dense.graph.ratios
    assert dropped.graph.dense == dense.graph.run
    assert dropped.graph.ratios.keys() == dropped.graph.noise.keys() == {"latency", "ttft", "tpot"}


def test_what_is_not_static_is_refused_and_keeps_its_other_costs(records: dict[str, RunRecord]) -> None:
    record = records["mue"]
    assert record.missing["time.graph"] == "what runs is decided anew for every token"
    assert record.time
    assert record.time.graph is None
    assert record.time.latency
    assert record.measured == ["graph", "latency"]


def test_drafts_and_chosen_keys_are_refused_by_what_they_declare(tiny_job: Callable[..., Job]) -> None:
    job = tiny_job(methods=("ngram", "streaming:window=4", "layer-drop:layers=1"), tasks=("tiny_answer",))
    dense, ngram, streaming, dropped = map(refusal, Session(job, Store(Path()), Silent()).plan.specs)
    assert dense is dropped is None
    assert ngram == "ngram writes guessed tokens: how many a step reads depends on which of them were right"
    assert str(streaming).startswith("streaming decides which keys a token meets by how many there are")


def test_what_is_answered_is_not_asked_again(job: Job, records: dict[str, RunRecord]) -> None:
    session = Session(job, Store(Path()), Silent())
    for spec, record in zip(session.plan.specs, records.values(), strict=True):
        assert "graph" not in lacking(record, spec, 2)
        other = replace(spec, job=job.model_copy(update={"costs": PLAN.model_copy(update={"rounds": 3})}))
        assert ("graph" in lacking(record, other, 2)) == (record.time is not None and record.time.graph is not None)


def test_tokens_that_differ_are_stated(job: Job, tmp_path: Path) -> None:
    alone = job.model_copy(update={"methods": ("dense",), "costs": GRAPHS})
    time = run(alone, tmp_path, Stuck)["dense"].time
    assert time
    assert time.graph
    assert time.latency is None
    assert time.graph.differences > 0
    assert any("tokens differ from those that the model writes" in doubt for doubt in time.graph.doubts)


def test_full_memory_is_a_reason_and_is_tried_again(job: Job, tmp_path: Path) -> None:
    """The first run has no way to capture; the second has memory."""
    some = job.model_copy(update={"methods": ("layer-drop:layers=1",), "costs": GRAPHS})
    full = run(some, tmp_path, lambda: Failing(torch.OutOfMemoryError("CUDA out of memory.")))
    for record in full.values():
        assert record.missing["time.graph"].startswith("dense: out of memory while its steps were captured")
        assert record.measured == []
    again = run(some, tmp_path, Replayed)
    assert all(record.time and record.time.graph for record in again.values())
    assert "time.graph" not in again["dense"].missing


def test_without_a_gpu_the_run_keeps_its_other_costs(harness: Harness, tiny: list[object]) -> None:
    asked = ["run", "--method", "dense", "--task", "tiny_answer", "--limit", 2, *tiny, "--measure", "flops", "--graph"]
    done = harness(*asked)
    assert done.code == 0
    assert "graphs need CUDA; here the model is on cpu" in " ".join(done.err.split())
    assert "captured steps: graphs need CUDA" in done.out
    (record,) = harness(*asked, "--json").json()
    assert record["time"] is None
    assert record["measured"] == ["graph"]
    assert record["missing"]["time.graph"].startswith("graphs need CUDA; here the model is on cpu")
    assert record["flops"]["total"] > 0
