"""Workers side by side: a thread for each takes the next item when the last is answered; lost ones are replaced."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Final, Generic, TypeVar

from harness.core.errors import LostWorkerError
from harness.sweep.board import Board, Watcher
from harness.sweep.items import Item, Outcome
from harness.sweep.launcher import Launcher, Worker

ATTEMPTS: Final = 3
"""Workers that one item may cost."""
_T = TypeVar("_T")


@dataclass
class Queue(Generic[_T]):
    """Things to do, made when they are asked for; what is put off comes at the end."""

    source: Iterator[_T]
    _later: deque[_T] = field(default_factory=deque, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def next(self) -> _T | None:
        """The next one; None where there is none."""
        with self._lock:
            return next(self.source, None) or (self._later.popleft() if self._later else None)

    def put_off(self, thing: _T) -> None:
        """Let it come at the end."""
        with self._lock:
            self._later.append(thing)


@dataclass
class Team:
    """So many workers of a launcher, each started when it is first needed.

    Where a worker is lost, its machine may be too, and room for another only where one was: from then on,
    a worker that has nothing more to do is let go while another starts.

    Attributes:
        size: how many work at once; 0 for as many as the launcher has for scores.
        alone: they measure costs, each alone on its machine.
        halted: no more is begun.
    """

    launcher: Launcher
    board: Board
    watcher: Watcher
    size: int = 0
    alone: bool = False
    halted: Event = field(default_factory=Event)
    _workers: dict[int, tuple[ExitStack, Worker]] = field(default_factory=dict, init=False)
    _resting: set[int] = field(default_factory=set, init=False)  # those whose threads have nothing more to do
    _starting: set[int] = field(default_factory=set, init=False)
    _has_lost: bool = field(default=False, init=False)
    _error: BaseException | None = field(default=None, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self.size = self.size or self.launcher.workers

    def run(self, source: Iterator[_T], work: Callable[[int, _T, Queue[_T]], None]) -> None:
        """Give everything to ``work``, which is called by each worker's thread with the worker's number.

        Raises:
            BaseException: the first that the source or ``work`` raises, when all threads have ended.
        """
        queue = Queue(source)
        self._resting.clear()
        threads = [Thread(target=self._keep, args=(number, queue, work), daemon=True) for number in range(self.size)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # with a limit, so that Ctrl-C is heard
        except BaseException:
            self.halted.set()
            self.kill()
            for thread in threads:
                thread.join()
            raise
        if self._error is not None:
            raise self._error

    def carry_out(self, number: int, item: Item) -> Outcome | None:
        """What came of an item; None where it was given up because the team is halted.

        Raises:
            LostWorkerError: it has cost as many workers as it may.
        """
        for attempt in range(1, ATTEMPTS + 1):
            worker = self._worker(number)
            if worker is None:
                return None
            try:
                outcome = worker.carry_out(item)
            except LostWorkerError as lost:
                self._leave(number)
                self._has_lost = True
                if self.halted.is_set():
                    return None
                if attempt == ATTEMPTS:
                    raise
                self.watcher.say(f"{item.name}: {lost}; again with a new one, and what is finished is kept")
            else:
                self._starting.discard(number)
                return outcome
        return None

    def kill(self) -> None:
        """End every worker in the middle of what it is at."""
        with self._lock:
            for _, worker in self._workers.values():
                worker.stop()

    def close(self) -> None:
        """Let every worker go."""
        for number in list(self._workers):
            self._leave(number)

    def _keep(self, number: int, queue: Queue[_T], work: Callable[[int, _T, Queue[_T]], None]) -> None:
        try:
            while not self.halted.is_set() and (thing := queue.next()) is not None:
                work(number, thing, queue)
        except BaseException as error:
            self.halted.set()
            self._error = self._error or error
        finally:
            self._starting.discard(number)
            self._resting.add(number)
            self._make_room()

    def _make_room(self) -> None:
        """Let the workers go that have nothing more to do, if another one may be waiting for their room."""
        with self._lock:
            idle = self._resting & self._workers.keys() if self._has_lost and self._starting else set[int]()
        for number in idle:
            self._leave(number)

    def _worker(self, number: int) -> Worker | None:
        """A thread's worker, started if need be; None once the team is halted, when ``kill`` would not see it."""
        with self._lock:
            if self.halted.is_set():
                return None
            if number not in self._workers:
                stack = ExitStack()
                worker = stack.enter_context(self.launcher.worker(number, alone=self.alone))
                self._workers[number] = (stack, worker)
                self._starting.add(number)
            worker = self._workers[number][1]
        self._make_room()
        return worker

    def _leave(self, number: int) -> None:
        with self._lock:
            stack, _ = self._workers.pop(number, (ExitStack(), None))  # two may let one go
        stack.close()
