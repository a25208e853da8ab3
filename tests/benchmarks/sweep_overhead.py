"""What a sweep costs over its runs: runs of zero length, planned, skipped or handed out, and the memory it takes.

    python -m tests.benchmarks.sweep_overhead --runs 1000 --runs 10000

The grid is the bundled model with ``--methods`` settings of layer-drop (beside dense) for as many seeds as the runs
take, on one bundled task; no worker is started: each item is answered at once. Each size is a process of its own.
Targets: 10,000 runs in at most 60 s, with memory that does not grow with their number.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.results.store import Store
from harness.sweep.board import Board
from harness.sweep.grid import Grid
from harness.sweep.items import Item, Outcome
from harness.sweep.request import asked
from harness.sweep.sweep import Sweep


class Nothing:
    """Two workers that have done everything at once, and a watcher that does not listen."""

    workers = 2
    threads = None

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator["Nothing"]:
        yield self

    def carry_out(self, item: Item) -> Outcome:
        item.model_dump_json(exclude={"job"})
        return Outcome(state="done")

    def stop(self) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def ended(self, board: Board, item: Item, outcome: Outcome) -> None:
        pass


def measure(runs: int, methods: int, folder: Path) -> None:
    seeds = -(-runs // (methods + 1))
    drops = [f"layer-drop:layers={first}/{second}" for first in range(12) for second in range(first + 1, 12)][:methods]
    request = asked({"method": drops, "task": "pocket_choice", "seeds": f"1..{seeds}", "limit": 4, "measure": "flops"})
    nothing, store = Nothing(), Store(folder)
    began, used = time.perf_counter(), time.process_time()
    grid = Grid(request, store, nothing)
    grid.check()
    checked, memory = time.perf_counter() - began, peak()
    board = Board(nothing.workers)
    Sweep(grid, store, nothing, nothing, board).run()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    print(
        f"{board.counts['done']:,} runs in {seconds:.1f} s, {used:.1f} s of a processor ({checked:.1f} s until the "
        f"first run), {1000 * (seconds - checked) / board.total:.2f} ms each; peak memory {peak():.0f} MB, "
        f"{peak() - memory:.0f} MB of it after the first plan"
    )


def peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, action="append")
    parser.add_argument("--methods", type=int, default=49)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    args = parser.parse_args()
    for runs in args.runs or [1000, 10000]:
        if args.here:
            with tempfile.TemporaryDirectory() as folder:
                measure(runs, args.methods, Path(folder))
        else:
            words = ["--here", "--runs", str(runs), "--methods", str(args.methods)]
            subprocess.run([sys.executable, "-m", "tests.benchmarks.sweep_overhead", *words], check=True)


if __name__ == "__main__":
    main()
