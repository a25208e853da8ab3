"""Costs that are measured one after another, by commands that ask for others, are still of the same requests."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.measure.profiles import keep_profile, kept_profile
from harness.results.cost_lines import requests_of
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.lacking import lacking
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
def job(tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(
        methods=("layer-drop:layers=0/2",),
        tasks=("tiny_choice",),
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


def test_the_command_of_a_record_asks_for_all_that_was_measured(job: Job, both: Path, tmp_path: Path) -> None:
    for record in measure(job, copied(both, tmp_path), plan("memory")):
        assert "--measure flops,ideal,latency,memory" in record.command
        assert record.memory.peak is not None or "memory.peak" in record.missing


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


@pytest.mark.parametrize(("prompts", "again"), [(2, False), (3, True), (8, True), (12, True)])
def test_more_requests_are_measured_when_they_are_asked_for(
    job: Job, timed: Path, tmp_path: Path, prompts: int, again: bool
) -> None:
    """As many as there are of 8 documents; those that are there already are enough when the command is repeated."""
    store = copied(timed, tmp_path)
    before = {folder.record().id: folder.record() for folder in store.folders()}
    asked = plan("latency", prompts=prompts)
    after = measure(job, store, asked)
    for record in after:
        assert (record.time.latency.raw != before[record.id].time.latency.raw) == again
        assert min(prompts, 8) <= record.time.settings.prompts == len(requests(store, record)) <= prompts
    assert [record.time.latency for record in measure(job, store, asked)] == [r.time.latency for r in after]


def test_a_better_profile_of_the_methods_own_modules_renews_its_times(job: Job, both: Path, tmp_path: Path) -> None:
    store = copied(both, tmp_path)
    (method,) = [folder for folder in store.folders() if folder.record().baseline is not None]
    record = method.record()
    (spec,) = [spec for spec in Session(job, store, Silent()).plan.specs if spec.id == record.id]
    spec = replace(spec, job=job.model_copy(update={"costs": plan("latency", "ideal")}))
    assert lacking(record, spec, 8) == set()
    profile = kept_profile(record.time.ideal.profile.partition("-")[0])
    own = profile.model_copy(update={"key": "own", "budget_s": 1.0, "cut_short": True})
    keep_profile(own)
    for measurement, budget_s, is_lacking in ((own.id, None, False), (own.id, 2.0, True), ("own-00000000", None, True)):
        times = record.time.ideal.model_copy(update={"own_profile": measurement})
        changed = record.model_copy(update={"time": record.time.model_copy(update={"ideal": times})})
        costs = plan("latency", "ideal", budget_s=budget_s)
        asked = replace(spec, job=job.model_copy(update={"costs": costs}))
        keep_profile(profile.model_copy(update={"budget_s": 1e9}))  # dense's own is not asked for more
        try:
            assert lacking(changed, asked, 8) == ({"ideal"} if is_lacking else set())
        finally:
            keep_profile(profile)


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
