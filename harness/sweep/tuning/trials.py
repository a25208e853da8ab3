"""Candidates measured for real: each is a run of the store, made by a sweep, and never made twice."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from harness.contract.stack import parse
from harness.core.errors import HarnessError, StoreError
from harness.core.text import duration
from harness.results.failure import failure_in
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.plan import Plan
from harness.sweep.board import Board, Watcher
from harness.sweep.grid import Grid, Place
from harness.sweep.launcher import Launcher
from harness.sweep.pace import Pace
from harness.sweep.request import Request, asked
from harness.sweep.sweep import Sweep
from harness.sweep.tuning.documents import Samples


class Screen(Watcher, Protocol):
    """Shows a sweep while it runs."""

    def watching(self, board: Board) -> AbstractContextManager[None]:
        """Show it for the length of a ``with`` block."""


@dataclass
class Trials:
    """Runs of methods on documents of one task and model.

    Attributes:
        settings: what all runs share, by the names of the flags of ``harness run``; one task, one model, one seed.
        measure: what is measured beside the scores.
        expected: runs that are still to come, at most.
    """

    settings: Mapping[str, Any]
    measure: Sequence[str]
    store: Store
    launcher: Launcher
    screen: Screen
    retry_failed: bool = False
    expected: int = 0
    _spent_s: float = field(default=0.0, init=False)
    _made: int = field(default=0, init=False)

    def plan(self, methods: Sequence[str]) -> Plan:
        """The plan of these methods on all documents."""
        return Plan(next(self.request(methods, None).jobs()), self.screen.say)

    def pace(self, samples: Samples) -> float | None:
        """Seconds of a run on these documents by earlier records; None where they do not tell."""
        job = next(self.request(["dense"], samples).jobs())
        return Pace.read(self.store.folders()).of(Plan(job, self.screen.say).specs[0])

    def request(self, methods: Sequence[str], samples: Samples | None) -> Request:
        """The sweep of these methods.

        Raises:
            HarnessError: a setting that there is not, or a value that it cannot have.
        """
        given = {**self.settings, "methods": list(methods), "measure": list(self.measure)}
        return asked(given if samples is None else {**given, "samples": samples})

    def records(self, methods: Sequence[str], samples: Samples) -> dict[str, RunRecord | str]:
        """The record of each method, beside dense, or why it has none; what is there is not made again.

        Raises:
            DiskError: results cannot be written.
        """
        refused = {text: reason for text in methods if (reason := _refusal(text))}
        possible = [text for text in methods if text not in refused]
        self.expected = max(self.expected - len(methods), 0)
        if not possible:
            return dict(refused)
        request = self.request(possible, samples)
        grid = Grid(request, self.store, self.screen, self.retry_failed, Pace.read(self.store.folders()))
        grid.check()
        board = Board(self.launcher.workers, expected_s=grid.expected_s)
        began = monotonic()
        with self.screen.watching(board):
            Sweep(grid, self.store, self.launcher, self.screen, board).run()
        self._say_left(board, monotonic() - began)
        reasons = {label: why for of_model in grid.refused.values() for label, why in of_model.items()}
        places = {place.spec.stack.fingerprint: place for place in grid.places()}
        stacks = {text: parse(text) for text in possible}
        return refused | {
            text: self._record(places[stack.fingerprint]) if stack.fingerprint in places else reasons[stack.label]
            for text, stack in stacks.items()
        }

    def _record(self, place: Place) -> RunRecord | str:
        spec = place.spec
        folder = self.store.folder(spec.id, spec.stack.label, spec.model.name, spec.task.name)
        failure = failure_in(folder.path)
        if failure is not None and failure.instead is not None:  # with a smaller batch
            folder = self.store.folder(failure.instead)
        try:
            return folder.record()
        except StoreError as error:
            return failure.reason if failure else str(error)

    def _say_left(self, board: Board, seconds: float) -> None:
        """Say about how long the rest of the search takes, at the pace of the runs that were made."""
        made = board.counts["done"] + board.counts["lowered"]
        if made:
            self._spent_s += seconds
            self._made += made
        if self._made and self.expected:
            left = self._spent_s / self._made * self.expected
            self.screen.say(f"at most {self.expected} more runs to make, in about {duration(left)}")


def _refusal(text: str) -> str | None:
    """Why methods cannot be stacked so; None where they can."""
    try:
        parse(text).check_order()
    except HarnessError as error:
        return str(error)
    return None
