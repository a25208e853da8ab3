"""Costs that are measured one after another, by commands that ask for others, are still of the same requests."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.measure.profiles import kept_profile
from harness.results.cost_lines import requests_of
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job, Measure
from tests.silent import Silent

FEW = CostPlan(prompts=2, rounds=2, warmup=0, accelerators=("l4", "this-host"), budget_s=1e-6)


def plan(*measure: Measure, **changes: object) -> CostPlan:
    return FEW.model_copy(update={"measure": frozenset({"flops", *measure}), **changes})


def measure(job: Job, store: Store, costs: CostPlan) -> list[RunRecord]:
    return Session(job.model_copy(update={"costs": costs}), store, Silent()).execute()


def requests(store: Store, record: RunRecord) -> list:
    return requests_of(store.find(record.id).costs().values())


@pytest.fixture(scope="module")
def job(tiny_folder: Path, tiny_tasks: Path) -> Job:
    return Job(
        methods=("layer-drop:layers=0/2",),
        tasks=("tiny_choice",),
        pretrained=str(tiny_folder),
        include_path=str(tiny_tasks),
        device="cpu",
        limit=8,
        costs=plan("latency"),
    )


@pytest.fixture(scope="module")
def timed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latency alone."""
    folder = tmp_path_factory.mktemp("timed")
    measure(job, Store(folder), job.costs)
    return folder


@pytest.fixture(scope="module")
def both(job: Job, timed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latency first, idealized times later."""
    folder = Path(shutil.copytree(timed, tmp_path_factory.mktemp("both") / "runs"))
    measure(job, Store(folder), plan("latency", "ideal"))
    return folder


def copied(folder: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(folder, tmp_path / "runs")))


def are_of_the_same_requests(store: Store, record: RunRecord) -> None:
    seconds = [request["ideal_s"] for request in requests(store, record)]
    observed = [np.median(request["run"]["latency"]) for request in requests(store, record)]
    assert record.time.ideal.requests_s == pytest.approx(np.median(seconds))
    assert record.time.ideal.overhead_ratio == pytest.approx(np.median(np.array(observed) / seconds))
    assert "time.ideal.requests_s" not in record.missing


def test_requests_that_were_measured_first_are_priced_later(both: Path) -> None:
    store = Store(both)
    for folder in store.folders():
        are_of_the_same_requests(store, folder.record())
    (method,) = [folder.record() for folder in store.folders() if folder.record().baseline]
    assert "ideal_requests" in method.baseline.ratios


def test_requests_without_a_trace_are_not_priced_and_say_so(job: Job, timed: Path, tmp_path: Path) -> None:
    store = copied(timed, tmp_path)
    for folder in store.folders():
        lines = folder.costs()
        for request in requests_of(lines.values()):
            del request["segments"]
        folder.write_costs(lines.values())
    for record in measure(job, store, plan("latency", "ideal")):
        assert record.time.ideal.requests_s is record.time.ideal.overhead_ratio is None
        for name in ("requests_s", "overhead_ratio"):
            assert record.missing[f"time.ideal.{name}"] == "what ran for the measured requests was not kept"
        assert record.time.roofline["this-host"].doubts == [
            "not checked: what ran for the measured requests was not kept"
        ]


def test_other_requests_are_priced_with_the_profile_that_is_kept(job: Job, both: Path, tmp_path: Path) -> None:
    store = copied(both, tmp_path)
    before = {folder.record().id: folder.record() for folder in store.folders()}
    for record in measure(job, store, plan("latency", seed=5, prompts=3)):
        assert len(requests(store, record)) == 3
        assert record.time.ideal.profile == before[record.id].time.ideal.profile
        assert record.time.ideal.ref_s == before[record.id].time.ideal.ref_s
        are_of_the_same_requests(store, record)


def test_other_requests_without_the_profile_are_not_priced(job: Job, both: Path, tmp_path: Path) -> None:
    store = copied(both, tmp_path)
    profile = kept_profile(store.folders()[0].record().time.ideal.profile.partition("-")[0])
    for folder in store.folders():
        record = folder.record()
        gone = record.time.ideal.model_copy(update={"profile": "0" * 16 + "-00000000"})
        folder.rewrite(record.model_copy(update={"time": record.time.model_copy(update={"ideal": gone})}))
    assert profile is not None
    for record in measure(job, store, plan("latency", seed=5)):
        assert record.time.ideal.requests_s is record.time.ideal.overhead_ratio is None
        assert "is not here any more" in record.missing["time.ideal.requests_s"]
        assert not any("ideal_s" in request for request in requests(store, record))
        assert not record.baseline or "ideal_requests" not in record.baseline.ratios
