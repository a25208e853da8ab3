"""How far a sweep is: what everybody may look at while it runs."""

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Protocol

from harness.sweep.items import Item, Outcome


@dataclass
class Board:
    """Counts of a sweep, and what its workers are at; times by a clock that nobody sets.

    Attributes:
        total: runs that were asked for, as far as they are known.
        counts: of runs, by how they ended: "done", "lowered", "failed", "there already", "failed before", "refused".
        workers: how many there are.
        doing: by worker, what it is at and since when.
        expected_s: seconds that a run should take by earlier records; None where they do not tell.
        costs: cost passes to come.
        unfinished: comparisons and cost passes that failed.
    """

    workers: int
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    doing: dict[int, tuple[Item, float]] = field(default_factory=dict)
    expected_s: float | None = None
    costs: int = 0
    unfinished: int = 0
    lock: Lock = field(default_factory=Lock)
    _spent: float = field(default=0.0, init=False)
    _timed: int = field(default=0, init=False)

    def begin(self, worker: int, item: Item) -> None:
        """A worker begins an item."""
        with self.lock:
            self.doing[worker] = (item, monotonic())

    def end(self, worker: int, outcome: Outcome | None) -> None:
        """A worker ends its item; no outcome where it is given to another."""
        with self.lock:
            item, since = self.doing.pop(worker)
            if outcome is None or outcome.state in ("busy", "stopped"):
                return
            if item.kind == "costs":
                self.costs -= 1
            if item.kind == "shard":  # the sweep counts their run
                self._spent += monotonic() - since
            elif item.kind != "quality":
                self.unfinished += outcome.state == "failed"
            else:
                self.counts[outcome.state] += 1
                if outcome.state == "done":
                    self._spent += monotonic() - since
                    self._timed += 1

    def count(self, state: str) -> None:
        """A run that ended otherwise than as an item of its own."""
        with self.lock:
            self.counts[state] += 1

    @property
    def ended(self) -> int:
        """Runs that nothing more is done about."""
        return self.counts.total()

    @property
    def failures(self) -> int:
        """Runs that were tried now and failed."""
        return self.counts["failed"]

    @property
    def left_s(self) -> float | None:
        """Seconds until all scores are there, at the pace so far or that of earlier records; None if neither tells."""
        with self.lock:
            each = self._spent / self._timed if self._timed else self.expected_s
            left = max(self.total - self.ended, 0)
            begun = sum(min(monotonic() - since, each or 0.0) for item, since in self.doing.values())
        return None if each is None else max(left * each - begun, 0.0) / self.workers


class Watcher(Protocol):
    """Told what happens, from several threads."""

    def say(self, message: str) -> None:
        """A sentence."""

    def ended(self, board: Board, item: Item, outcome: Outcome) -> None:
        """An item has ended."""
