"""A sweep being carried out: scores by all workers, then comparisons with dense, then costs, alone on a machine."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Literal

from harness.core.errors import DiskError, LostWorkerError
from harness.results.failure import Failure
from harness.results.store import Store
from harness.sweep.board import Board, Watcher
from harness.sweep.grid import Grid, Place
from harness.sweep.items import Item, Outcome
from harness.sweep.launcher import Launcher
from harness.sweep.team import Queue, Team


@dataclass
class Sweep:
    """A grid of runs and who makes them.

    Attributes:
        max_failures: so many failed runs end it; None for no limit.
        shards: parts of each run that workers take side by side.
        measuring: how many measure costs at once, each by one worker alone.
    """

    grid: Grid
    store: Store
    launcher: Launcher
    watcher: Watcher
    board: Board
    max_failures: int | None = None
    shards: int = 1
    measuring: int = 1
    _to_compare: set[tuple[int, str]] = field(default_factory=set, init=False)  # jobs by their numbers, and tasks
    _to_measure: set[tuple[int, str]] = field(default_factory=set, init=False)

    def run(self) -> None:
        """Make every run that is not there; what fails is recorded, and the rest goes on.

        Raises:
            DiskError: results cannot be written.
            HarnessError: a job cannot be planned.
        """
        self.store.check_writable()
        self.board.total = self.grid.total
        for _ in range(self.grid.refusals):
            self.board.count("refused")
        with closing(Team(self.launcher, self.board, self.watcher)) as team:
            team.run(self._pending(), partial(self._evaluate, team))
            too_many = team.halted.is_set()
            team.halted.clear()
            team.run(self._items("compare", self._to_compare), partial(self._finish, team))
        if too_many:
            return
        self.board.costs = len(self._to_measure)
        if self.board.costs:
            with closing(Team(self.launcher, self.board, self.watcher, self.measuring, alone=True)) as team:
                team.run(self._items("costs", self._to_measure), partial(self._finish, team))

    def _pending(self) -> Iterator[Place]:
        """The runs to be made, or their parts; the others are counted on the way."""
        for place in self.grid.places():
            if place.state == "to run":
                yield from place.in_parts(self.shards)
            else:
                self.board.count(place.state)
                if place.state == "there already":
                    self._note(place)

    def _note(self, place: Place) -> None:
        """Note what is to be done about a run once all scores of its task are there."""
        about = place.number, place.spec.task.name
        if not place.compared:
            self._to_compare.add(about)
        if place.job.costs.measure - {"flops"} and not place.costed:
            self._to_measure.add(about)

    def _evaluate(self, team: Team, worker: int, place: Place, queue: Queue[Place]) -> None:
        if place.parts is not None and place.parts.over:
            return
        item, began = place.item, monotonic()
        self.board.begin(worker, item)
        outcome = None
        try:
            outcome = team.carry_out(worker, item)
        except LostWorkerError as lost:
            outcome = self._lost(place, lost)
        finally:
            self.board.end(worker, outcome)
        if outcome is None:
            return
        if outcome.state == "stopped":
            raise DiskError(outcome.reason)
        if outcome.state == "busy":
            queue.put_off(replace(place, wait=True))
            return
        if place.parts is not None and place.shard is not None:
            if outcome.state == "done":
                if place.parts.end(monotonic() - began):
                    self._evaluate(team, worker, replace(place, shard=None), queue)
                return
            if not place.parts.give_up():
                return
            self.board.count(outcome.state)
        if outcome.state == "done":
            self._note(place)
        self.watcher.ended(self.board, item, outcome)
        if self.max_failures is not None and self.board.failures >= self.max_failures:
            team.halted.set()

    def _lost(self, place: Place, lost: LostWorkerError) -> Outcome:
        """Record that a run cost too many workers."""
        spec = place.spec
        names = (spec.stack.label, spec.model.name, spec.task.name)
        failure = Failure(reason=f"{lost}, every time", method=names[0], model=names[1], task=names[2])
        failure.write(self.store.folder(spec.id, *names).path, lost.log)
        return Outcome(state="failed", run=spec.id, reason=failure.reason)

    def _items(self, kind: Literal["compare", "costs"], wanted: set[tuple[int, str]]) -> Iterator[Item]:
        for number, job in enumerate(self.grid.jobs()):
            for task in self.grid.tasks:
                if (number, task) in wanted:
                    yield Item(job=job, kind=kind, task=task)

    def _finish(self, team: Team, worker: int, item: Item, queue: Queue[Item]) -> None:
        """Compare, or measure, the runs of a task."""
        self.board.begin(worker, item)
        outcome = None
        try:
            outcome = team.carry_out(worker, item)
        except LostWorkerError as lost:
            outcome = Outcome(state="failed", reason=f"{lost}, every time")
        finally:
            self.board.end(worker, outcome)
        if outcome is None:
            return
        if outcome.state == "stopped":
            raise DiskError(outcome.reason)
        self.watcher.ended(self.board, item, outcome)
