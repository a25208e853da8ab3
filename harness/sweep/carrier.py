"""What a worker does with an item: it keeps the model loaded from one item to the next, and turns errors into data."""

import gc
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from harness.core import environment
from harness.core.errors import DiskError, HarnessError
from harness.core.files import writing
from harness.core.paths import cache_folder
from harness.core.progress import Bar
from harness.core.strangers import causes, explained, is_interrupt, message_of, text_of
from harness.evaluate.shard import Shard
from harness.results.failure import Failure, failure_in
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store, is_locked
from harness.run.command import alone, typed
from harness.run.completion import give_up
from harness.run.session import Session
from harness.run.spec import CostPlan, Job, ModelSettings, RunSpec
from harness.run.units import Unit
from harness.sweep.items import Item, Outcome
from harness.sweep.threads import limited

NO_MEMORY: Final = "the machine ran out of memory at the batch size that was asked for, where it cannot be compared"
"""Why a run with a lowered batch has no costs."""


class Log:
    """Progress as lines of a log; bars are for people, who do not watch it."""

    def say(self, message: str) -> None:
        """Write a line."""
        print(message, file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        """Write that it begins."""
        self.say(title)
        yield self

    def expect(self, requests: int) -> None:
        """Nothing."""

    def advance(self, requests: int) -> None:
        """Nothing."""


@dataclass
class Carrier:
    """Carries out items, one after the other.

    Attributes:
        store: where results go.
        log: the file that this process's standard error goes to; begun anew with each item.
        threads: that scores are computed with; None for as many as torch takes.
    """

    store: Store
    log: Path | None = None
    threads: int | None = None
    _session: Session | None = field(default=None, init=False)
    _checked: set[tuple[str, str]] = field(default_factory=set, init=False)

    def carry_out(self, item: Item) -> Outcome:
        """What came of an item; only the end of the process is raised."""
        if self.log is not None:
            self.log.open("w").close()
        try:
            with explained():
                outcome = self._carried(item)
        except DiskError as error:
            return Outcome(state="stopped", reason=str(error))
        except BaseException as error:
            if is_interrupt(error):
                raise
            is_full = _out_of_memory(error)
            outcome = self._failed(item, error)
        else:
            return outcome
        # only here is the error gone, and with it what its frames hold; a run without an id cannot be planned
        return self._smaller(item, outcome) if is_full and outcome.run else outcome

    def _carried(self, item: Item) -> Outcome:
        session = self._session_of(item.job)
        if item.kind in ("quality", "shard"):
            spec = _spec(session, item)
            with limited(self.threads):
                here = environment.observe(session.plan.device)
                return self._quality(session, replace(spec, environment=here), item)
        specs = [spec for spec in session.plan.of_task(item.task) if session.folder(spec).finished]
        if item.kind == "compare":
            session.compare(specs)
            return Outcome(state="done")
        if item.job.baseline and not (specs and specs[0].stack.is_dense):
            raise HarnessError(f"{item.task}: dense has no result here, and costs are measured beside it")
        with self._machine_alone():
            session.carry_out(Unit(kind="costs", task=item.task))
        if missing := [
            spec.stack.label
            for spec in session.plan.of_task(item.task)
            if not ((folder := session.folder(spec)).finished or failure_in(folder.path))
        ]:
            raise HarnessError(
                f"{', '.join(missing)}: no result on {item.task} under the ids that are computed here, where costs are "
                "measured; ids depend on processor, kernels and versions"
            )
        return Outcome(state="done")

    def _quality(self, session: Session, spec: RunSpec, item: Item) -> Outcome:
        folder = session.folder(spec)
        if not item.wait and not folder.finished and _is_busy(folder, item.shard):
            return Outcome(state="busy", run=spec.id)
        if not folder.finished:
            place = (spec.loaded.fingerprint, f"{item.task} {spec.score_mode}")
            if place not in self._checked:  # what cannot be served costs no hours
                session.check([spec])
                self._checked.add(place)
            session.check_calibrations([spec])
            if item.shard is not None:
                session.evaluate_shard(spec, item.shard)
                return Outcome(state="done", run=spec.id)
            session.evaluate_run(spec, item.spent_s)
        return Outcome(state="done", run=spec.id, score=_score(folder.record()))

    def _session_of(self, job: Job) -> Session:
        """A session of the job, on the model that is loaded where it is the job's."""
        current = self._session
        if current is None or current.job != job:
            self._checked.clear()
            if current is not None and _loading(current.job) == _loading(job):
                self._session = current.followed_by(job)
            else:
                self._session = current = None  # the old model goes before the new one is loaded
                self._session = Session(job, self.store, Log())
        assert self._session is not None
        return self._session

    def _failed(self, item: Item, error: BaseException) -> Outcome:
        """Record why a run failed, in its folder, with the log."""
        reason = text_of(error) if isinstance(error, HarnessError) else message_of(error)
        traceback.print_exception(error)
        sys.stderr.flush()
        if item.kind not in ("quality", "shard") or self._session is None:
            return Outcome(state="failed", reason=reason)
        try:
            spec = _spec(self._session, item)
            self._leave(self._session.folder(spec), spec, Failure(reason=reason))
        except DiskError as full:
            return Outcome(state="stopped", reason=str(full))
        except Exception:  # it has no id, and so no folder
            return Outcome(state="failed", reason=reason)
        return Outcome(state="failed", run=spec.id, reason=reason)

    def _leave(self, folder: RunFolder, spec: RunSpec, failure: Failure) -> None:
        names = {"method": spec.stack.label, "model": spec.model.name, "task": spec.task.name}
        log = self.log.read_bytes() if self.log is not None else b""
        failure.model_copy(update=names).write(folder.path, log)

    def _smaller(self, item: Item, failed: Outcome) -> Outcome:
        """The run again with half of the rows in a batch, and dense beside it, until they fit."""
        assert self._session is not None
        spec = _spec(self._session, item)
        folder, rows = self._session.folder(spec), spec.job.batch_size
        self._session = None  # with the model
        while rows := rows // 2:
            _free()
            try:
                with explained(), limited(self.threads):
                    record = Session(_smaller_job(spec, rows), self.store, Log()).evaluate()[-1]
                reason = f"out of memory at batch size {spec.job.batch_size}: evaluated at batch size {rows}"
                self._mark(self.store.folder(record.id), spec, reason)
                self._leave(folder, spec, Failure(reason=reason, instead=record.id))
            except DiskError as error:
                return Outcome(state="stopped", reason=str(error))
            except Exception as error:
                if not _out_of_memory(error):
                    return self._failed(item, error)
                continue
            return Outcome(state="lowered", run=record.id, reason=reason, score=_score(record))
        return failed

    def _mark(self, folder: RunFolder, spec: RunSpec, reason: str) -> None:
        """Say in a record that its batch was lowered, and refuse its costs."""
        record = folder.record()
        if reason not in record.warnings:
            folder.rewrite(record.model_copy(update={"warnings": [*record.warnings, reason]}))
        wanted = spec.job.costs.measure - {"flops"}
        if wanted:
            give_up(folder, folder.record(), wanted, NO_MEMORY)

    @contextmanager
    def _machine_alone(self) -> Iterator[None]:
        """Keep other sweeps of this user from measuring on this machine meanwhile; one that does is waited for."""
        path = cache_folder() / f"costs.{platform.node()}.lock"  # machines may share the folder
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                Log().say("another sweep measures costs on this machine: waiting")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _is_busy(folder: RunFolder, shard: Shard | None) -> bool:
    """Whether another process is at a run; of a shard, whether one is at it, or at the run as a whole."""
    if shard is None:
        return folder.busy
    return is_locked(folder.path / shard.journal) or is_locked(folder.journal(0))


def _spec(session: Session, item: Item) -> RunSpec:
    """The run of an item."""
    assert item.stack is not None
    stack = session.plan.stacks[item.stack]
    return next(spec for spec in session.plan.of_task(item.task) if spec.stack is stack)


def _smaller_job(spec: RunSpec, rows: int) -> Job:
    """The job of one run alone, with so many rows in a batch; its costs are refused."""
    job = alone(spec, typed(spec))
    return job.model_copy(update={"batch_size": rows, "name": spec.job.name, "costs": CostPlan()})


def _loading(job: Job) -> dict[str, object]:
    """The settings that decide which model is loaded, and how."""
    return job.model_dump(include=set(ModelSettings.model_fields))


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the machine, whatever was made of it on the way."""
    from harness.measure.batched import is_full

    return any(map(is_full, causes(error)))


def _free() -> None:
    """Give back what is not used any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _score(record: RunRecord) -> str:
    best = next(iter(record.scores), None)
    return f"{best.metric} {best.value:.4f}" if best and best.value is not None else ""
