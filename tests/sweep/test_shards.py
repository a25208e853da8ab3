"""A run in parts: whoever takes them, and however often they are stopped, its record is that of the whole run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.evaluate.journal import Journal
from harness.evaluate.shard import Shard
from harness.results.failure import failure_in
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep.parts import Parts
from tests.silent import Silent
from tests.sweep.conftest import Swept, Threads
from tests.sweep.records import timeless

pytestmark = pytest.mark.usefixtures("no_survey")
Sweeping = Callable[..., Swept]


def same(sharded: Store, whole: Store) -> bool:
    runs = {folder.id: timeless(folder) for folder in whole.folders()}
    assert len(runs) > 1
    return {folder.id: timeless(folder) for folder in sharded.folders()} == runs


@pytest.mark.parametrize(
    ("task", "shards", "settings"),
    [
        ("tiny_choice,tiny_answer,tiny_text", 2, {"batch_size": 4}),
        ("tiny_choice", 50, {"score_mode": "context-first"}),  # more than there are batches
        ("tiny_group", 3, {"batch_size": 8, "seed": "0..1"}),
    ],
)
def test_records_are_those_of_whole_runs(
    task: str, shards: int, settings: dict[str, Any], sweep: Sweeping, tmp_path: Path
) -> None:
    asked = {"task": task, "method": "layer-drop:count=1", "limit": 9, **settings}
    whole = sweep(results="whole", **asked)
    sharded = sweep(launcher=Threads(tmp_path / "runs", workers=2), shards=shards, **asked)
    assert sharded.counts == whole.counts
    assert same(sharded.store, whole.store)
    made = [item.shard for item, _ in sharded.launcher.answered if item.kind == "shard"]
    assert len(made) == whole.counts["done"] * shards
    for folder in sharded.store.folders():
        assert {path.name for path in folder.path.iterdir()} == {"record.json", "samples.jsonl", "manifest.json"}


class Killed(KeyboardInterrupt):
    """As Ctrl-C, but from a test."""


def test_a_stopped_shard_goes_on_where_it_stopped(
    tiny_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(methods=("dense",), tasks=("tiny_answer",), limit=10)

    def session(results: str) -> Session:
        return Session(job, Store(tmp_path / results), Silent())

    written, write = [], Journal.write

    def counted(journal: Journal, batch: list[Any]) -> None:
        if len(written) == 2:
            raise Killed
        written.append(batch)
        write(journal, batch)

    stopped = session("stopped")
    (spec,) = stopped.plan.specs
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", counted)
        with pytest.raises(Killed):
            stopped.evaluate_shard(spec, Shard(1, 2))
    folder = stopped.folder(spec)
    assert [path.name for path in folder.shards] == ["journal.shard2of2.jsonl"]
    forwards, generate = [], type(stopped.lm).mro()[1]._model_generate
    monkeypatch.setattr(
        type(stopped.lm).mro()[1], "_model_generate", lambda *args, **kw: (forwards.append(1), generate(*args, **kw))[1]
    )
    stopped.evaluate_shard(spec, Shard(1, 2))
    assert len(forwards) == 3
    stopped.evaluate()  # without the other shard: what is missing is computed
    assert len(forwards) == 3 + 1 + 5  # one to try it out
    whole = session("whole")
    whole.evaluate()
    assert timeless(folder) == timeless(whole.folder(spec))


def test_what_is_drawn_at_random_stays_whole(sweep: Sweeping) -> None:
    drawing = {"do_sample": True, "temperature": 1.0}
    swept = sweep(shards=2, task="tiny_answer", gen_kwargs=drawing)
    assert {item.kind for item, _ in swept.launcher.answered} == {"quality", "compare"}
    assert swept.counts == {"done": 1}


def test_a_run_whose_shard_fails_has_failed_once(sweep: Sweeping, failing: str) -> None:
    swept = sweep(shards=3, method=failing)
    assert swept.counts == {"done": 1, "failed": 1}
    (folder,) = [folder for folder in swept.store.folders() if not folder.finished]
    failure = failure_in(folder.path)
    assert failure is not None
    assert "it broke" in failure.reason
    assert [item.kind for item, outcome in swept.launcher.answered if outcome.state == "failed"] == ["shard"]
    assert sweep(shards=2, method=failing).counts == {"there already": 1, "failed before": 1}


def test_a_shard_that_does_not_fit_lowers_its_run_once(sweep: Sweeping, failing: str) -> None:
    swept = sweep(shards=2, method=f"{failing}:how=memory,rows=2", batch_size=8, limit=10)
    assert swept.counts == {"done": 1, "lowered": 1}


def test_the_last_part_to_end_makes_the_run() -> None:
    parts = Parts(3)
    assert [parts.end(2.0), parts.end(1.0), parts.end(0.5)] == [False, False, True]
    assert parts.spent_s == 3.5
    given_up = Parts(2)
    assert not given_up.end(1.0)
    assert given_up.give_up()
    assert not given_up.give_up()
    assert not given_up.end(1.0)
