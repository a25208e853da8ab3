"""What is computed from stored observations is made anew when its source has changed: same id, no model."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.measure import ideal
from harness.measure.profile import LinearCosts
from harness.measure.profiles import keep_profile, kept_profile
from harness.results import sources
from harness.results.baseline import RatioInfo
from harness.results.costs import AddedCosts
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store
from harness.run import renewal
from harness.run.renewal import renew, renew_stored
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent

PLAN = CostPlan(
    measure={"flops", "ideal", "latency"}, prompts=2, rounds=2, warmup=0, accelerators=("l4",), budget_s=1e-6
)


@pytest.fixture(scope="module")
def job(tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(
        methods=("layer-drop:layers=0/2",),
        tasks=("tiny_choice",),
        limit=8,
        costs=PLAN,
    )


@pytest.fixture(scope="module")
def measured(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense and a method, measured."""
    folder = tmp_path_factory.mktemp("measured")
    Session(job, Store(folder), Silent()).execute()
    return folder


@pytest.fixture
def store(measured: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(measured, tmp_path / "runs"))


def damaged(folder: RunFolder, sections: Sequence[str] = tuple(sources.MODULES)) -> RunRecord:
    """The record of a folder, in which numbers of some sections are now those that nothing computed."""
    record = folder.record()
    time = record.time.model_copy(
        update={
            "ideal": record.time.ideal.model_copy(update={"ref_s": 1e6, "overhead_ratio": 1e6}),
            "roofline": {"l4": record.time.roofline["l4"].model_copy(update={"seconds": 1e6})},
        }
    )
    changed = {}
    if "scores" in sections:
        changed["scores"] = [score.model_copy(update={"low": -9.0}) for score in record.scores]
    if "time.ideal" in sections or "time.roofline" in sections:
        changed["time"] = time
    if record.baseline is not None:
        ratios = {name: RatioInfo(value=1e6) for name in record.baseline.ratios}
        changed["baseline"] = record.baseline.model_copy(update={"ratios": ratios})
    folder.rewrite(record.model_copy(update=changed))
    return record


def records(store: Store) -> dict[str, RunRecord]:
    return {record.id: record for record in (folder.record() for folder in store.folders())}


def test_a_rerun_renews_what_another_source_computed(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {folder.record().id: damaged(folder) for folder in store.folders()}
    assert len(whole) == 2
    monkeypatch.setattr(sources, "closure_digest", lambda module: f"another {module}")
    session = Session(job, store, Silent())
    renewed = {record.id: record for record in session.execute()}
    assert "lm" not in vars(session)  # no model was loaded
    assert renewed.keys() == whole.keys()
    for run_id, record in renewed.items():
        assert record == records(store)[run_id]
        assert all(digest.startswith("another harness.") for digest in record.sources.values())
        assert record.model_copy(update={"sources": whole[run_id].sources}) == whole[run_id]


def test_nothing_is_renewed_while_its_source_is_the_same(job: Job, store: Store) -> None:
    for folder in store.folders():
        damaged(folder)
    before = records(store)
    Session(job, store, Silent()).execute()
    assert records(store) == before


@pytest.mark.parametrize("section", sources.MODULES)
def test_one_changed_source_renews_its_sections(section: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {folder.record().id: damaged(folder, [section]) for folder in store.folders()}
    changed, known = sources.MODULES[section], sources.closure_digest
    monkeypatch.setattr(sources, "closure_digest", lambda module: "new" if module == changed else known(module))
    for folder in store.folders():
        renew_stored(store, folder)
    for run_id, record in records(store).items():
        assert record.model_copy(update={"sources": whole[run_id].sources}) == whole[run_id]
        assert record.sources.get(section) == (None if section == "baseline" and not record.baseline else "new")


def test_a_new_formula_changes_the_times_of_all_documents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {folder.record().id: (folder.record(), folder.costs()) for folder in store.folders()}
    monkeypatch.setattr(sources, "closure_digest", lambda module: "new")
    runtime = ideal.ideal_runtime
    monkeypatch.setattr("harness.run.modelled.ideal_runtime", lambda *given: runtime(*given) + runtime(*given))
    for folder in store.folders():
        renew_stored(store, folder)
        old, costs = before[folder.record().id]
        assert folder.record().time.ideal.ref_s == pytest.approx(2 * old.time.ideal.ref_s)
        assert folder.record().time.ideal.overhead_ratio == pytest.approx(old.time.ideal.overhead_ratio / 2)
        assert folder.record().time.latency == old.time.latency
        for key, line in folder.costs().items():
            assert line["ideal_s"] == pytest.approx(2 * costs[key]["ideal_s"])
            for request, measured in zip(line.get("requests", ()), costs[key].get("requests", ()), strict=True):
                assert request["ideal_s"] == pytest.approx(2 * measured["ideal_s"])
                assert request["run"] == measured["run"]


def test_without_the_profile_times_stay_and_the_next_run_measures_them(
    job: Job, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dense,) = [folder for folder in store.folders() if folder.record().baseline is None]
    damaged(dense)
    monkeypatch.setattr(sources, "closure_digest", lambda module: "new")
    monkeypatch.setattr(renewal, "measured_profile", lambda _: None)
    record = renew(dense, None)
    assert record.time.ideal.ref_s == 1e6
    assert record.sources["scores"] == "new"
    assert record.sources["time.ideal"] != "new"
    session = Session(job, store, Silent())
    again = session.execute()[0]
    assert again.sources["time.ideal"] == "new"
    assert again.time.ideal.ref_s < 1


def test_looking_does_not_need_what_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (method,) = [folder for folder in store.folders() if folder.record().baseline is not None]
    record = method.record()
    (method.path / "samples.jsonl").unlink()
    monkeypatch.setattr(sources, "closure_digest", lambda module: "new")
    renew_stored(store, method)
    assert method.record() == record


def test_a_better_profile_renews_the_times_of_runs_that_are_asked_for_again(job: Job, store: Store) -> None:
    before = records(store)
    profile = kept_profile(next(iter(before.values())).time.ideal.profile.partition("-")[0])
    twice = LinearCosts(**{name: 2 * value for name, value in profile.decode.model_dump().items()})
    better = profile.model_copy(update={"decode": twice})
    keep_profile(better)
    try:
        progress = Silent()
        Session(job, store, progress).execute()
        assert [title for title in progress.titles if title.startswith(("cost profile", "latency", "memory"))] == []
        for run_id, record in records(store).items():
            assert record.time.ideal.profile == better.id != before[run_id].time.ideal.profile
            assert record.time.latency == before[run_id].time.latency
            if record.baseline is not None:
                assert record.baseline.ratios == before[run_id].baseline.ratios  # of scored texts, which decode nothing
    finally:
        keep_profile(profile)


def test_more_budget_is_spent_when_it_is_asked_for(job: Job, store: Store) -> None:
    before = records(store)
    profile = kept_profile(next(iter(before.values())).time.ideal.profile.partition("-")[0])
    # as if measured in no time, whatever budget another test gave this model
    keep_profile(profile.model_copy(update={"budget_s": 1e-6, "cut_short": True}))
    more = job.model_copy(update={"costs": job.costs.model_copy(update={"budget_s": 2e-6})})
    progress = Silent()
    try:
        Session(more, store, progress).execute()
        assert len([title for title in progress.titles if title.startswith("cost profile")]) == 1
        improved = kept_profile(profile.key)
        assert improved.budget_s == 2e-6
        assert {record.time.ideal.profile for record in records(store).values()} == {improved.id}
    finally:
        keep_profile(profile)


@pytest.mark.parametrize("added", [None, AddedCosts(call=1e-4, check=1e-5)])
@pytest.mark.parametrize("work", [{"router": 128, "router_macs": 4096}, {"checks": 3}])
def test_an_older_trace_of_decisions_keeps_the_times_that_it_has(
    work: dict[str, int], added: AddedCosts | None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say how many calls they were, or what they took."""
    monkeypatch.setattr(sources, "closure_digest", lambda module: "new")
    for folder in store.folders():
        path = folder.path / "samples.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["rows"][0]["segments"][0] |= work
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        damaged(folder)
        record = folder.record()
        modelled = record.time.ideal.model_copy(update={"added": added})
        folder.rewrite(record.model_copy(update={"time": record.time.model_copy(update={"ideal": modelled})}))
    for folder in store.folders():
        renew_stored(store, folder)
        assert folder.record().time.ideal.ref_s == 1e6
        assert folder.record().sources["time.ideal"] != "new"
