"""Under lm-eval: one path for all choices of a document, whatever the batch; the same for scoring and writing."""

import json
from pathlib import Path

import pytest
import torch

from harness.cli.prepare import prepare_into
from harness.measure.routes import path_of
from harness.measure.segment import Segment
from harness.methods.routing.router import RouterController, new_router
from harness.model.paths.layer_path import routed
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.testing.serve import Text, generate, score
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

DR_LLM = "dr-llm:questions=8,simulations=6,epochs=10,hidden=8,control=-0.7"


@pytest.fixture
def evaluated(tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str):
    """Paths by document of a run: [(task, document), path of each of its rows]."""

    def run(method, task, batch_size=1, **job):
        settings = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device, "limit": 8}
        settings |= {"model_args": {"dtype": "float32"}, "baseline": False, "batch_size": batch_size}
        store = Store(tmp_path / "runs")
        (record,) = Session(Job(methods=(method,), tasks=(task,), **settings, **job), store, Silent()).execute()
        return record, {
            line["doc_id"]: [path_of(map(Segment.from_json, row["segments"])) for row in line["rows"]]
            for line in store.find(record.id).samples()
        }

    return run


def test_all_choices_of_a_document_take_one_path_in_any_batch(evaluated):
    record, alone = evaluated(DR_LLM, "tiny_choice")
    _, batched = evaluated(DR_LLM, "tiny_choice", batch_size=8)
    for document, paths in alone.items():
        assert len(paths) == 3
        assert len({*paths, *batched[document]}) == 1
    assert record.routes.distinct == len({paths[0] for paths in alone.values()})
    assert record.flops.parts["router"] > 0
    assert record.flops.audit_ratio == pytest.approx(1, abs=1e-9)


def test_random_paths_differ_between_documents_and_not_between_choices(evaluated):
    record, paths = evaluated("random-skip:executed=0.5,first=0,last=0", "tiny_choice", batch_size=4)
    assert all(len(set(each)) == 1 for each in paths.values())
    assert record.routes.distinct > 2
    assert record.trace.mean_depth_prefill == pytest.approx(0.5)
    assert record.routes.union_prefill > 0.5


def test_scoring_and_writing_take_the_same_path_after_the_same_prompt():
    decoder, generator = tiny_decoder("llama"), torch.Generator().manual_seed(0)
    routers = [new_router(32, 16, generator) for _ in range(4)]
    prompts = [tuple(torch.randint(3, 259, (length,), generator=generator).tolist()) for length in (9, 14, 5, 11)]
    texts = [Text(prompt, (7, 8, 9)) for prompt in prompts]
    taken = []
    for serve in (score, generate, lambda *args: score(*args, padding=5), lambda *args: generate(*args, padding=3)):
        with routed(decoder, RouterController(decoder, routers, windows=8, control=-0.6)) as engine:
            serve(decoder, texts)
            taken.append(engine.last_paths)
        with routed(decoder, RouterController(decoder, routers, windows=8, control=-0.6)) as engine:
            for row, text in enumerate(texts):
                serve(decoder, [text])
                assert engine.last_paths == [taken[-1][row]]
    assert all(paths == taken[0] for paths in taken)
    assert len(set(taken[0])) > 1


def test_whole_texts_are_refused_before_anything_is_loaded(evaluated):
    from harness.core.errors import MethodError

    with pytest.raises(MethodError, match="tiny_text scores whole texts"):
        evaluated(DR_LLM, "tiny_text")
    assert evaluated("random-skip:executed=0.5,first=0,last=0", "tiny_text")[0].routes is not None


def test_a_state_is_prepared_shared_and_refused(tiny_folder, tiny_tasks, tmp_path, device):
    job = {"tasks": ("tiny_letters",), "include_path": str(tiny_tasks), "device": device, "limit": 3, "baseline": False}
    progress = Silent()

    def session(method, pretrained=tiny_folder, **more):
        return Session(
            Job(methods=(method,), pretrained=str(pretrained), **job, **more), Store(tmp_path / "r"), progress
        )

    [facts] = prepare_into(session(DR_LLM), tmp_path / "state")["state"]
    assert facts["questions"] == 8
    shared = f"dr-llm:state={tmp_path / 'state'}"
    (record,) = session(f"{shared},control=0.5").execute()
    assert record.routes.identity == 1
    assert record.method.state[0]["oracle"] == facts["oracle"]

    from harness.core.errors import HarnessError, MethodError

    with pytest.raises(HarnessError, match="is there already"):
        prepare_into(session(DR_LLM), tmp_path / "state")
    with pytest.raises(MethodError, match=r"made for another name \(dr-llm, not polar\)"):
        session(f"polar:state={tmp_path / 'state'}").execute()
    stored = json.loads((tmp_path / "state" / "state.json").read_text())
    for part in ("model", "tokenizer"):
        changed = {**stored, "key": {**stored["key"], part: "hub:x@1"}}
        (tmp_path / "state" / "state.json").write_text(json.dumps(changed))
        with pytest.raises(MethodError, match=rf"made for another {part} \(hub:x@1, not"):
            session(shared).execute()
    with pytest.raises(MethodError, match="is no folder"):
        session("dr-llm:state=nowhere").execute()
