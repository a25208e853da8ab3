"""What is timed is what was scored: each method's cost pass runs what its evaluation ran, document by document."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from harness.contract.decoder import Decoder, Row
from harness.contract.registry import listings
from harness.measure.interleave import Participant
from harness.measure.segment import Segment
from harness.results.store import Store
from harness.run.measured import Serving, draw_requests
from harness.run.modelled import rows_of
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent

TASKS = ("tiny_letters", "tiny_answer")
SMALL = "samples=2,length=48"
SEARCHED = "goal=likelihood,questions=2"
METHODS = {
    "dense": "dense",
    "layer-drop": "layer-drop:unit=attention,layers=0/2",
    "ffn-prune": "ffn-prune:multiple=1",
    "magnitude": "magnitude",
    "wanda": f"wanda:{SMALL}",
    "int8-dynamic": "int8-dynamic",
    "block-sparse": f"block-sparse:sparsity=0.5,{SMALL}",
    "calm": "calm:confidence=saturation,threshold=0.95,every=1,decay=4",
    "skip-decode": "skip-decode",
    "mue": f"mue:quantile=0.5,start=0.2,{SMALL}",
    "dr-llm": f"dr-llm:{SEARCHED},simulations=2,epochs=1,hidden=8",
    "polar": f"polar:{SEARCHED},simulations=2,epochs=1",
    "static-path": f"static-path:{SEARCHED},skip=1",
    "random-skip": "random-skip:executed=0.5,first=1,last=0",
}


@pytest.fixture(scope="module")
def session(tiny_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """All methods on all tasks, on one model."""
    job = tiny_job(
        methods=tuple(METHODS.values()),
        tasks=TASKS,
        limit=3,
        costs=CostPlan(measure={"flops"}, prompts=3),
    )
    session = Session(job, Store(tmp_path_factory.mktemp("alike")), Silent())
    session.execute()
    return session


def test_every_built_in_method_is_here() -> None:
    # act in decoding alone: scored context first
    elsewhere = {"kv-evict", "kv-int", "kvpress", "streaming", "ngram", "layer-skip", "self-spec", "assistant"}
    elsewhere |= {"quest", "tidal-decode"}
    # another model; for models with LayerNorm; served as others here are
    others = {"checkpoint", "rms-fold", "sparse-gpt", "repair", "window-attention"}
    # by the engine of window-attention
    others |= {"mas", "hard-attention", "block-summary", "chunk-select", "vertical-slash", "flex-prefill"}
    # by the engine of int8-dynamic, and of magnitude
    others |= {"int8-weight-only", "int4-weight-only", "gptq", "mixed-precision", "fp8", "random"}
    others |= {"awq", "hqq", "smooth-quant", "rep-quant", "mx"}
    others |= {"rotate", "shuffle"}  # other weights in the same layers
    assert METHODS.keys() | elsewhere | others == {listing.name for listing in listings() if listing.built_in}


def by_forward(segments: list[Segment]) -> list[tuple[object, ...]]:
    """The work of each forward, the batch left out."""
    return list(
        chain.from_iterable(
            [(s.phase, s.queries, s.attention, s.mlp, s.head, s.fill, _macs(s), s.keys)] * s.forwards for s in segments
        )
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", METHODS)
def test_the_cost_pass_runs_what_the_evaluation_ran(session: Session, name: str, task: str) -> None:
    (spec,) = (spec for spec in session.plan.of_task(task) if spec.stack.name == name)
    lines = list(session.folder(spec).samples())
    requests = draw_requests(session.lm, spec, lines)
    serving = Serving(session.lm.decoder, requests, spec.job.costs, Silent(), task)
    traces = serving.traces(Participant(name, lambda: session.attached(spec)))
    scored = {line["doc_id"]: [by_forward(row) for row in rows_of(line)] for line in lines}
    for request, trace in zip(requests, traces, strict=True):
        timed = by_forward(trace)
        # a generation that the evaluation stopped is timed to the length that was asked for
        assert any(timed[: len(row)] == row[: len(timed)] for row in scored[request.document])
        assert len(timed) == max(request.new_tokens, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_are_the_same_where_documents_are_chosen(
    task: str, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents by their own numbers, and answers of one token that share a row, in both."""
    served: list[Row] = []
    serving = Decoder.serving

    def spy(self: Decoder, rows: Sequence[Row], *args: Any, **kwargs: Any) -> Any:
        served.extend(rows)
        return serving(self, rows, *args, **kwargs)

    monkeypatch.setattr(Decoder, "serving", spy)
    settings = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device}
    plan = CostPlan(measure={"flops"}, prompts=3)
    job = Job(methods=("dense",), tasks=(task,), samples={task: [2, 9, 17]}, costs=plan, **settings)
    session = Session(job, Store(tmp_path), Silent())
    session.execute()
    (spec,) = session.plan.of_task(task)
    requests = draw_requests(session.lm, spec, list(session.folder(spec).samples()))
    assert {request.row for request in requests} == set(served)
    assert {row.document for row in served} == {2, 9, 17}


def _macs(segment: Segment) -> dict[str, int]:
    """Multiply-accumulates of added work, by kind."""
    return {kind: work.macs for kind, work in segment.extra.items()}
