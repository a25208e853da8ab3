"""Workers that stay from one sweep to the next, with the model that they have loaded."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from harness.core.errors import LostWorkerError
from harness.sweep.items import Item, Outcome
from harness.sweep.launcher import Launcher, Worker


@dataclass
class _Staying:
    """A worker that is let go when it is lost or stopped, or with all others."""

    worker: Worker
    stack: ExitStack
    lost: bool = False

    def carry_out(self, item: Item) -> Outcome:
        try:
            return self.worker.carry_out(item)
        except LostWorkerError:
            self.lost = True
            raise

    def stop(self) -> None:
        self.lost = True
        self.worker.stop()


@dataclass
class Kept:
    """A launcher of such workers; those of scores end before one measures costs, which wants the machine to itself."""

    launcher: Launcher
    _staying: dict[tuple[int, bool], _Staying] = field(default_factory=dict, init=False)

    @property
    def workers(self) -> int:
        """How many work on scores at once."""
        return self.launcher.workers

    @property
    def threads(self) -> int | None:
        """Threads that each of them computes scores with."""
        return self.launcher.threads

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Worker]:
        """A worker, new or kept, for the length of a ``with`` block."""
        if alone:
            self._leave([key for key in self._staying if not key[1]])
        key = (number, alone)
        if key not in self._staying:
            stack = ExitStack()
            self._staying[key] = _Staying(stack.enter_context(self.launcher.worker(number, alone=alone)), stack)
        staying = self._staying[key]
        try:
            yield staying
        finally:
            if staying.lost:
                self._leave([key])

    def close(self) -> None:
        """Let all of them go."""
        self._leave(list(self._staying))

    def _leave(self, keys: list[tuple[int, bool]]) -> None:
        for key in keys:
            self._staying.pop(key).stack.close()
