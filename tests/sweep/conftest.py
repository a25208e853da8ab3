"""Sweeps on the tiny model whose workers are threads of the test's process, and methods that fail on purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.results.store import Store
from harness.sweep.board import Board
from harness.sweep.carrier import Carrier
from harness.sweep.grid import Grid
from harness.sweep.items import Item, Outcome
from harness.sweep.launcher import Launcher
from harness.sweep.request import asked
from harness.sweep.sweep import Sweep

METHODS = '''
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from harness.contract.families import Family
from harness.contract.method import Method


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Fails in a way of one's choice: with ``once``, as often as there are files in HARNESS_FAILING."""

    name = "failing"
    family = Family.PRUNING
    how: str = "raise"
    rows: int = 0
    once: bool = False

    @contextmanager
    def attach(self, model, prepared):
        def watch(module, args, kwargs):
            if self.rows and (args[0] if args else kwargs["input_ids"]).shape[0] <= self.rows:
                return
            if self.once:
                marker = next(Path(os.environ["HARNESS_FAILING"]).iterdir(), None)
                if marker is None:
                    return
                marker.unlink()
            if self.how == "machine":  # of a Ray cluster
                next(each for each in psutil.Process().parents() if each.name() == "raylet").kill()
                time.sleep(60)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "memory":
                raise torch.OutOfMemoryError("no more")
            if self.how == "allocator":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            raise RuntimeError("it broke")

        handle = model.module.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
'''


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A method that fails, as the command line writes it; with ``once``, one time."""
    path = tmp_path / "failing.py"
    path.write_text(METHODS)
    marker = tmp_path / "failing" / "marker"
    marker.parent.mkdir()
    marker.touch()
    monkeypatch.setenv("HARNESS_FAILING", str(marker.parent))
    return f"{path}:Failing"


@dataclass
class Inline:
    """A worker of this process."""

    carrier: Carrier
    answered: list[tuple[Item, Outcome]]

    def carry_out(self, item: Item) -> Outcome:
        outcome = self.carrier.carry_out(item)
        self.answered.append((item, outcome))
        return outcome

    def stop(self) -> None:
        pass


@dataclass
class Threads:
    """Workers of this process; what they answered is kept."""

    results: Path
    workers: int = 1
    threads: int | None = None
    answered: list[tuple[Item, Outcome]] = field(default_factory=list)

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Inline]:
        yield Inline(Carrier(Store(self.results)), self.answered)


@dataclass
class Heard:
    """Keeps what it is told."""

    said: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def say(self, message: str) -> None:
        self.said.append(message)

    def ended(self, board: Board, item: Item, outcome: Outcome) -> None:
        self.outcomes[item.name] = outcome


@dataclass
class Swept:
    """A sweep that has run."""

    store: Store
    board: Board
    heard: Heard
    launcher: Any

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.board.counts)


@pytest.fixture
def sweep(tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str) -> Callable[..., Swept]:
    """Run a sweep on the tiny model; what is given is what a test is about."""

    def run(
        launcher: Launcher | None = None,
        results: str = "runs",
        retry_failed: bool = False,
        max_failures: int | None = None,
        shards: int = 1,
        **given: Any,
    ) -> Swept:
        store = Store(tmp_path / results)
        common = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device}
        request = asked({**common, "task": "tiny_letters", "limit": 4, "measure": "flops", **given})
        heard, launched = Heard(), launcher or Threads(store.root)
        grid = Grid(request, store, heard, retry_failed)
        grid.check()
        board = Board(launched.workers)
        Sweep(grid, store, launched, heard, board, max_failures, shards).run()
        return Swept(store, board, heard, launched)

    return run
