"""A method that raises while its costs are measured has none, and says why; all others have theirs."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import HarnessError
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent

GOOD, BAD = "layer-drop:layers=0/2", "mue:threshold=0.5"
PLAN = CostPlan(
    measure={"flops", "ideal", "latency", "memory"}, prompts=2, rounds=2, warmup=0, accelerators=("l4",), budget_s=1e-6
)
ATTACHED = Session.attached_in_place_of


@pytest.fixture(scope="module")
def job(tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(
        methods=(GOOD, BAD),
        tasks=("tiny_choice",),
        limit=6,
        costs=CostPlan(measure={"flops"}),
    )


@pytest.fixture(scope="module")
def scored(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    Session(job, Store(folder), Silent()).execute()
    return folder


class Failure:
    """Attaches as a session does; what is named raises when it is attached, or after some forwards."""

    def __init__(self, name: str, forwards: int | None) -> None:
        self.name, self.forwards = name, forwards

    @contextmanager
    def attached(self, session: Session, lm: Any, spec: Any) -> Iterator[Any]:
        with ATTACHED(session, lm, spec) as prepared:
            if spec.stack.parts[0].name != self.name if spec.stack.parts else self.name != "dense":
                yield prepared
                return
            if self.forwards is None:
                raise RuntimeError("boom")
            handle = lm.decoder.module.register_forward_pre_hook(self._count)
            try:
                yield prepared
            finally:
                handle.remove()

    def _count(self, *_: object) -> None:
        assert self.forwards is not None
        self.forwards -= 1
        if self.forwards < 0:
            raise RuntimeError("boom")


def execute(job: Job, store: Store, failure: Failure | None, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Silent]:
    if failure is not None:
        monkeypatch.setattr(Session, "attached_in_place_of", lambda *given: failure.attached(*given))
    progress = Silent()
    records = Session(job.model_copy(update={"costs": PLAN}), store, progress).execute()
    monkeypatch.setattr(Session, "attached_in_place_of", ATTACHED)
    return {record.method.name: record for record in records}, progress


def is_complete(record: RunRecord) -> bool:
    time = record.time
    return bool(time and time.latency and time.ideal and record.memory.peak and "time" not in record.missing)


@pytest.mark.parametrize(
    ("forwards", "stage"),
    [
        (None, "attaching"),
        (0, "a first request"),
        (3, "what the method adds"),
        (14, "latency"),
        (20, "memory"),
        (22, "idealized time"),
    ],
)
def test_who_raises_is_left_out(
    job: Job, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: int | None, stage: str
) -> None:
    store = Store(Path(shutil.copytree(scored, tmp_path / "runs")))
    records, progress = execute(job, store, Failure("mue", forwards), monkeypatch)
    assert is_complete(records["dense"])
    assert is_complete(records["layer-drop"])
    assert "latency" in records["layer-drop"].baseline.ratios
    failed = records["mue"]
    assert failed.time is None
    assert failed.memory.peak is None
    assert failed.measured == []
    reason = f"could not be measured: {stage} of {failed.method.label} on tiny_choice: "
    assert failed.missing["time"] == failed.missing["memory.peak"]
    assert failed.missing["time"].startswith(reason)
    assert failed.missing["time"].endswith("boom")
    assert f"costs {failed.missing['time']}" in progress.said
    again, _ = execute(job, store, None, monkeypatch)
    assert all(is_complete(record) for record in again.values())
    assert not any("could not" in why for record in again.values() for why in record.missing.values())


def test_nothing_is_measured_without_dense(
    job: Job, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(Path(shutil.copytree(scored, tmp_path / "runs")))
    with pytest.raises(HarnessError, match=r"could not be measured: a first request of dense on tiny_choice: .*boom"):
        execute(job, store, Failure("dense", 0), monkeypatch)
