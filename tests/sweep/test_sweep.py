"""A grid is made once, by any number of workers; what fails is recorded, and the rest goes on."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pytest
from filelock import FileLock

from harness.core.errors import DiskError, HarnessError, LostWorkerError
from harness.core.files import writing
from harness.results.failure import FAILURE, LOG, failure_in
from harness.results.store import RunFolder, Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep import carrier
from harness.sweep.items import Item, Outcome
from tests.conftest import Harness
from tests.silent import Silent
from tests.sweep.conftest import Inline, Swept, Threads
from tests.sweep.records import timeless

pytestmark = pytest.mark.usefixtures("no_survey")
Sweeping = Callable[..., Swept]


def test_records_are_those_of_single_runs(sweep: Sweeping, tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    swept = sweep(method="layer-drop:count=1..2", task="tiny_letters,tiny_choice", seed=["0,1234,1234,1234"])
    methods = ("layer-drop:count=1", "layer-drop:count=2")
    session = Session(
        tiny_job(methods=methods, tasks=("tiny_letters", "tiny_choice"), limit=4), Store(tmp_path / "single"), Silent()
    )
    records = session.execute()
    assert swept.counts == {"done": 6}
    assert {record.id for record in records} == {folder.id for folder in swept.store.folders()}
    for record in records:
        assert timeless(swept.store.find(record.id)) == timeless(session.store.find(record.id))


def test_done_runs_are_skipped_and_new_ones_join_them(sweep: Sweeping) -> None:
    sweep(method="layer-drop:count=1")
    again = sweep(method="layer-drop:count=1..2")
    assert again.counts == {"there already": 2, "done": 1}
    made = [item.name for item, _ in again.launcher.answered]
    assert made == ["layer-drop:count=2 on tiny_letters", "comparing with dense on tiny_letters"]
    assert not sweep(method="layer-drop:count=1..2").launcher.answered


def test_a_model_is_loaded_once_by_a_worker(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = carrier.Session._loaded.__globals__["loading"].load
    monkeypatch.setattr("harness.run.loading.load", lambda *args: (loads.append(args), load(*args))[1])
    swept = sweep(method="layer-drop:count=1..2", seed="0..1")
    assert swept.counts == {"done": 6}
    assert len(loads) == 1


def test_a_method_that_cannot_be_on_the_model_is_refused_and_the_rest_runs(sweep: Sweeping) -> None:
    swept = sweep(method="layer-drop:layers=1|9")
    assert swept.counts == {"refused": 1, "done": 2}
    assert swept.board.total == 3
    with pytest.raises(HarnessError, match="no method can run"):
        sweep(method="layer-drop:layers=9", baseline=False)


def test_a_failed_run_is_recorded_and_the_rest_goes_on(sweep: Sweeping, failing: str, harness: Harness) -> None:
    swept = sweep(method=[failing, "layer-drop:count=1"])
    assert swept.counts == {"done": 2, "failed": 1}
    (folder,) = [folder for folder in swept.store.folders() if not folder.finished]
    failure = failure_in(folder.path)
    assert failure is not None
    assert "it broke" in failure.reason
    assert failure.method == "failing"
    assert folder.is_run
    rows = {row["id"]: row for row in harness("ls", "runs", "-o", swept.store.root, "--json").json()}
    assert rows[folder.id]["state"].startswith("failed: ")
    assert rows[folder.id]["method"] == "failing"
    assert sum(row["state"] == "finished" for row in rows.values()) == 2
    assert sweep(method=[failing]).counts == {"there already": 1, "failed before": 1}
    assert sweep(method=[failing], retry_failed=True).counts == {"there already": 1, "failed": 1}


def test_a_failed_run_that_is_made_after_all_is_no_failure_any_more(sweep: Sweeping, failing: str) -> None:
    method = f"{failing}:once=true"
    assert sweep(method=method).counts == {"done": 1, "failed": 1}
    swept = sweep(method=method, retry_failed=True)
    assert swept.counts == {"there already": 1, "done": 1}
    for folder in swept.store.folders():
        assert not {FAILURE, LOG} & {path.name for path in folder.path.iterdir()}
        assert folder.record().method.name == "dense" or folder.record().baseline is not None


def test_so_many_failures_end_it(sweep: Sweeping, failing: str) -> None:
    swept = sweep(method=f"{failing}:how=x|y|z", max_failures=2)
    assert swept.counts == {"done": 1, "failed": 2}


@pytest.mark.parametrize("how", ["memory", "allocator"])
def test_a_batch_that_does_not_fit_is_halved(sweep: Sweeping, failing: str, how: str) -> None:
    method = f"{failing}:how={how},rows=2"
    swept = sweep(method=method, batch_size=8, measure="flops,latency", cost_samples=2, repeats=2, warmup=0)
    assert swept.counts == {"done": 1, "lowered": 1}
    (lowered,) = [outcome for outcome in swept.heard.outcomes.values() if outcome.state == "lowered"]
    record = swept.store.find(lowered.run or "").record()
    assert record.evaluation.batch_size == 2
    assert "out of memory at batch size 8: evaluated at batch size 2" in record.warnings
    assert "ran out of memory" in record.missing["time"]
    assert record.baseline is not None
    assert swept.store.find(record.baseline.run_id).record().evaluation.batch_size == 2
    again = sweep(method=method, batch_size=8)
    assert again.counts == {"there already": 2}
    assert not again.launcher.answered


def test_what_does_not_fit_at_all_has_failed(sweep: Sweeping, failing: str) -> None:
    swept = sweep(method=f"{failing}:how=memory", batch_size=2)
    assert swept.counts == {"done": 1, "failed": 1}


@pytest.mark.parametrize("damage", ["record.json", "samples.jsonl", "gone"])
def test_a_damaged_record_is_set_aside_and_made_again(damage: str, sweep: Sweeping) -> None:
    swept = sweep(method="layer-drop:count=1")
    (folder,) = [folder for folder in swept.store.folders() if folder.record().method.name == "layer-drop"]
    before = timeless(folder)
    if damage == "gone":
        (folder.path / "samples.jsonl").unlink()
    else:
        path = folder.path / damage
        path.write_bytes(path.read_bytes()[:-40])
    again = sweep(method="layer-drop:count=1")
    assert again.counts == {"there already": 1, "done": 1}
    assert "set aside as" in again.heard.said[0]
    assert (folder.path.parent / f"{folder.path.name}.damaged-1").is_dir()
    assert timeless(swept.store.find(folder.id)) == before
    assert len(again.store.folders()) == 2


class Busy(Threads):
    """Another sweep is at the first run, and ends it when this one has nothing else to do."""

    def __init__(self, results: Path, finish: Callable[[], None]) -> None:
        super().__init__(results)
        self.finish = finish

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Inline]:
        with super().worker(number, alone=alone) as worker:
            carry_out = worker.carry_out

            def watched(item: Item) -> Outcome:
                if item.wait:
                    self.finish()
                return carry_out(item)

            worker.carry_out = watched  # type: ignore[method-assign]
            yield worker


def test_a_run_that_another_sweep_is_at_comes_last(sweep: Sweeping, tmp_path: Path) -> None:
    whole = sweep(results="whole", method="layer-drop:count=1..2")
    (dense,) = [folder for folder in whole.store.folders() if folder.record().method.name == "dense"]
    there = tmp_path / "runs" / dense.path.name
    there.mkdir(parents=True)
    lock = FileLock(there / "journal.jsonl.lock")
    lock.acquire()

    def finish() -> None:
        shutil.copytree(dense.path, there, dirs_exist_ok=True)
        lock.release()

    swept = sweep(launcher=Busy(tmp_path / "runs", finish), method="layer-drop:count=1..2")
    assert [(item.label, outcome.state) for item, outcome in swept.launcher.answered if item.kind == "quality"] == [
        ("dense", "busy"),
        ("layer-drop:count=1", "done"),
        ("layer-drop:count=2", "done"),
        ("dense", "done"),
    ]
    assert swept.counts == {"done": 3}
    assert all(f.record().baseline for f in swept.store.folders() if f.record().method.name != "dense")


class Mortal(Threads):
    """Workers that are lost with their first items."""

    def __init__(self, results: Path, losses: int) -> None:
        super().__init__(results)
        self.losses = losses
        self.started = 0

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Inline]:
        self.started += 1
        with super().worker(number, alone=alone) as worker:
            carry_out = worker.carry_out

            def dying(item: Item) -> Outcome:
                if item.label and self.losses:
                    self.losses -= 1
                    raise LostWorkerError("the worker was killed by SIGKILL", b"last words")
                return carry_out(item)

            worker.carry_out = dying  # type: ignore[method-assign]
            yield worker


def test_a_lost_worker_is_replaced(sweep: Sweeping, tmp_path: Path) -> None:
    swept = sweep(launcher=Mortal(tmp_path / "runs", losses=2), method="layer-drop:count=1")
    assert swept.counts == {"done": 2}
    assert swept.launcher.started == 3
    assert sum("killed by SIGKILL" in sentence for sentence in swept.heard.said) == 2


def test_a_run_that_costs_worker_after_worker_has_failed(sweep: Sweeping, tmp_path: Path) -> None:
    swept = sweep(launcher=Mortal(tmp_path / "runs", losses=3), method="layer-drop:count=1")
    assert swept.counts == {"failed": 1, "done": 1}
    (folder,) = [folder for folder in swept.store.folders() if not folder.finished]
    assert (folder.path / LOG).read_bytes() == b"last words"


class Shrinking(Threads):
    """Two machines, of which the second goes away with its first item: one worker has room from then on."""

    def __init__(self, results: Path) -> None:
        super().__init__(results, workers=2)
        self.room = Semaphore(2)
        self.is_gone = Event()

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Inline]:
        with super().worker(number, alone=alone) as worker, ExitStack() as place:
            carry_out, taken = worker.carry_out, list[object]()

            def placed(item: Item) -> Outcome:
                if not taken:
                    assert self.room.acquire(timeout=60), "waited without end for room"
                    taken.append(place.callback(self.room.release))
                if number == 1 and not self.is_gone.is_set():
                    place.pop_all()
                    self.is_gone.set()
                    raise LostWorkerError("the machine is gone")
                assert self.is_gone.wait(60)
                return carry_out(item)

            worker.carry_out = placed  # type: ignore[method-assign]
            yield worker


def test_a_lost_worker_waits_for_room_no_longer_than_the_others_work(sweep: Sweeping, tmp_path: Path) -> None:
    swept = sweep(launcher=Shrinking(tmp_path / "runs"), method="layer-drop:count=1..2")
    assert swept.counts == {"done": 3}


def test_a_full_disk_ends_it(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: RunFolder, *args: Any) -> None:
        with writing(folder.path):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", full)
        with pytest.raises(DiskError, match="no space left"):
            sweep(method="layer-drop:count=1")
    assert sweep(method="layer-drop:count=1").counts == {"done": 2}


def test_costs_come_last_and_are_measured_beside_dense(sweep: Sweeping, failing: str) -> None:
    settings = {"measure": "flops,latency", "cost_samples": 2, "repeats": 2, "warmup": 0}
    swept = sweep(method=["layer-drop:count=1..2", failing], **settings)
    assert [item.kind for item, _ in swept.launcher.answered][-2:] == ["compare", "costs"]
    for folder in swept.store.folders():
        if folder.finished:
            assert folder.record().measured == ["latency"]
    assert swept.board.unfinished == 0
    assert not sweep(method="layer-drop:count=1..2", **settings).launcher.answered


def test_the_command_line(harness: Harness, tiny: list[object], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("method: layer-drop:count=1..2\ntask: tiny_letters\nlimit: 4\nseeds: 0..1\n")
    plan = harness("sweep", "sweep.yaml", *tiny, "--dry_run", "--json").json()
    assert [row["method"] for row in plan] == ["dense", "layer-drop:count=1", "layer-drop:count=2"] * 2
    assert {row["state"] for row in plan} == {"to run"}
    assert len({row["id"] for row in plan}) == 6
    ids = [
        row["id"]
        for row in harness(
            "run",
            *tiny,
            "--task",
            "tiny_letters",
            "--limit",
            4,
            "--seed",
            1,
            "--method",
            "layer-drop:count=2",
            "--dry_run",
            "--json",
        ).json()
    ]
    assert ids[1] == plan[5]["id"]
    assert harness("sweep", "--metod", "x").code == 2
    assert (
        "Did you mean 'count'" in harness("sweep", *tiny, "-m", "layer-drop:cuont=1..2", "-t", "tiny_letters").sentence
    )
    assert "which task?" in harness("sweep", *tiny, "-m", "dense").sentence
    assert "Did you mean 'local'" in harness("sweep", *tiny, "-t", "tiny_letters", "--launcher", "locl").sentence
    assert "--launcher ray" in harness("sweep", *tiny, "-t", "tiny_letters", "--address", "auto").sentence
    (tmp_path / "parts.yaml").write_text("task: tiny_letters\nshards: 0\n")
    assert "shards: expected a whole number from 1, got 0" in harness("sweep", "parts.yaml", *tiny).sentence
