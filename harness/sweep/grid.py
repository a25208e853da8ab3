"""A sweep's runs: those that are asked for, those that cannot be, those that are there; planned one job at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import mean
from typing import Self

from harness.contract.stack import parse
from harness.core.errors import HarnessError, StoreError
from harness.core.source import read_once
from harness.evaluate.shard import Shard
from harness.results.failure import failure_in
from harness.results.record import RunRecord
from harness.results.sources import stale
from harness.results.store import RunFolder, Store
from harness.run.lacking import lacking
from harness.run.plan import Plan, by_model
from harness.run.spec import Job, RunSpec
from harness.sweep.board import Watcher
from harness.sweep.items import Item
from harness.sweep.pace import Pace
from harness.sweep.parts import Parts
from harness.sweep.request import Request


@dataclass(frozen=True)
class Place:
    """A run of the grid.

    Attributes:
        number: of its job among the grid's.
        job: with all its methods; ``stack`` is the run's place among them.
        state: "to run", "there already", "failed before".
        reason: why it failed before.
        wait: another process is at it, and is to be waited for.
        shard: the part of it that is meant, of so many; None for all of it.
        parts: what is known of the other parts.
        compared, costed: of a run that is there, whether nothing is to be compared, or measured, any more.
    """

    number: int
    job: Job
    spec: RunSpec
    stack: int
    state: str = "to run"
    reason: str = ""
    wait: bool = False
    shard: Shard | None = None
    parts: Parts | None = None
    compared: bool = False
    costed: bool = False

    @property
    def item(self) -> Item:
        """What a worker is given to make it."""
        return Item(
            job=self.job,
            kind="quality" if self.shard is None else "shard",
            task=self.spec.task.name,
            stack=self.stack,
            label=self.spec.stack.label,
            shard=self.shard,
            spent_s=self.parts.spent_s if self.parts and self.shard is None else 0.0,
            wait=self.wait,
        )

    def in_parts(self, count: int) -> Iterator[Self]:
        """Its shards, of which the last one to end makes it whole; itself where its answers are drawn at random."""
        if count == 1 or self.spec.draws_at_random:
            yield self
            return
        parts = Parts(count)
        for index in range(count):
            yield replace(self, shard=Shard(index, count), parts=parts)


@dataclass
class Grid:
    """The runs of a request.

    Attributes:
        retry_failed: runs that failed before are to be made.
        refused: by model, the methods that cannot run there, with the reasons.
        pace: how long runs took before; None to look at no records.
        tasks: by name, groups resolved.
        expected_s: seconds that a run takes in the mean by earlier records, where they tell.
    """

    request: Request
    store: Store
    watcher: Watcher
    retry_failed: bool = False
    pace: Pace | None = None
    refused: dict[str, dict[str, str]] = field(default_factory=dict, init=False)
    tasks: tuple[str, ...] = field(default=(), init=False)
    expected_s: float | None = field(default=None, init=False)
    _kept: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _runs: int = field(default=0, init=False)
    _last: Plan | None = field(default=None, init=False)

    def check(self) -> None:
        """Plan one job for each model, so that whatever is wrong is said before anything is done.

        Raises:
            HarnessError: a method, a task or a model that there is not, or a model on which no method can run.
        """
        times: list[float] = []
        for job in self.request.jobs():
            if job.pretrained in self._kept:
                continue
            plan = self._plan(job)
            reasons = {stack.fingerprint: reason for stack in plan.stacks if (reason := plan.refusal(stack))}
            if len(reasons) == len(plan.stacks):
                raise HarnessError(f"no method can run on {job.pretrained}: {next(iter(reasons.values()))}")
            labels = {stack.fingerprint: stack.label for stack in plan.stacks}
            self.refused[job.pretrained] = {labels[each]: reason for each, reason in reasons.items()}
            with read_once():
                texts = job.methods if not reasons else (t for t in job.methods if parse(t).fingerprint not in reasons)
                self._kept[job.pretrained] = tuple(texts)
            specs = self._plan(self._possible(job)).specs
            self.tasks = tuple(dict.fromkeys(spec.task.name for spec in specs))
            self._runs += len(specs) * len(self.request.seeds)
            times += [seconds for spec in specs if self.pace and (seconds := self.pace.of(spec)) is not None]
        self.expected_s = mean(times) if times else None

    @property
    def refusals(self) -> int:
        """How many runs cannot be."""
        return sum(map(len, self.refused.values())) * len(self.tasks) * len(self.request.seeds)

    @property
    def total(self) -> int:
        """How many runs there are, those that cannot be among them."""
        return self._runs + self.refusals

    def jobs(self) -> Iterator[Job]:
        """The jobs, each with the methods that can run on its model."""
        return map(self._possible, self.request.jobs())

    def places(self) -> Iterator[Place]:
        """Every run that can be, model by model; the plan of one job is in memory at a time."""
        existing = {folder.id: folder for folder in self.store.folders()}
        for number, job in enumerate(self.jobs()):
            plan = self._plan(job)
            stacks = {id(stack): index for index, stack in enumerate(plan.stacks)}
            for spec in by_model(plan.specs):
                place = Place(number, plan.job, spec, stacks[id(spec.stack)])
                folder = existing.get(spec.id)
                yield place if folder is None else self._found(place, folder)

    def _found(self, place: Place, folder: RunFolder) -> Place:
        """A run of which something is there."""
        if folder.finished and (record := self._read(folder)) is not None:
            documents = sum(1 for _ in islice(folder.samples(), place.spec.job.costs.prompts))
            is_dense, known = place.spec.stack.is_dense, not stale(record)
            compared = known and (is_dense or not place.job.baseline or record.baseline is not None)
            costed = folder.packed or not lacking(record, place.spec, documents)
            return replace(place, state="there already", compared=compared or folder.packed, costed=costed)
        failure = failure_in(folder.path)
        if failure is None or self.retry_failed:
            return place
        if failure.instead is not None:
            if not self.store.folder(failure.instead).finished:
                return place
            return replace(place, state="there already", reason=failure.reason, compared=True, costed=True)
        return replace(place, state="failed before", reason=failure.reason)

    def _read(self, folder: RunFolder) -> RunRecord | None:
        """A finished run's record; None for a damaged run, which is set aside."""
        try:
            record = folder.record()
            for _ in folder.samples():
                pass
        except StoreError as error:
            if folder.packed:
                raise
            if folder.busy or not folder.finished:  # another process makes it again
                return None
            path = self.store.set_aside(folder)
            self.watcher.say(f"{error}: set aside as {path}, and computed again")
            return None
        return record

    def _possible(self, job: Job) -> Job:
        return job.model_copy(update={"methods": self._kept[job.pretrained]})

    def _plan(self, job: Job) -> Plan:
        """The plan of a job, kept until the next one is asked for."""
        last = self._last
        if last is None or last.job.model_copy(update={"seeds": job.seeds}) != job:
            self._last = Plan(job, self.watcher.say)
        elif last.job != job:
            self._last = last.reseeded(job)
        assert self._last is not None
        return self._last
