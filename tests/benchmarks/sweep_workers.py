"""What two local workers gain over one, what a sweep takes over the sum of its runs, and the memory of its processes.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.sweep_workers --limit 200

The grid is dense and layer-drop on one bundled task; scores alone. A worker takes all threads when it is alone and its
share of them beside others, so one thread each compares like with like; without OMP_NUM_THREADS one worker is compared
with two of half the threads. Run it alone on the machine. Targets: 1.7 times as fast on two cores; 5 % over the runs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.results.store import Store


@dataclass(frozen=True)
class Sweep:
    """A sweep that was made.

    Attributes:
        wall_s: from its start to its end.
        first_s: until its first worker began the first run.
        runs_s: what its runs took together, by their records.
        driver, worker: peak resident memory of the sweep's own process and of a worker, in MB.
    """

    runs: int
    wall_s: float
    first_s: float
    runs_s: float
    driver: float
    worker: float


def sweep(workers: int, args: argparse.Namespace) -> Sweep:
    words = ["--method", f"layer-drop:count=1..{args.methods}", "--task", args.task, "--limit", str(args.limit)]
    words += ["--batch_size", "8", "--measure", "flops", "--workers", str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        store, began = Store(Path(folder)), time.time()
        process = subprocess.Popen([sys.executable, "-m", "harness", "sweep", *words, "-o", folder])
        driver = worker = 0.0
        while process.poll() is None:
            driver = max(driver, _resident(process.pid))
            worker = max([worker, *(_resident(each.pid) for each in psutil.Process(process.pid).children())])
            time.sleep(0.2)
        wall_s = time.time() - began
        if process.returncode:
            sys.exit(f"the sweep ended with exit code {process.returncode}")
        records = [each.record() for each in store.folders()]
    first_s = min(record.started.timestamp() for record in records) - began
    return Sweep(len(records), wall_s, first_s, sum(record.duration_s for record in records), driver, worker)


def _resident(process: int) -> float:
    try:
        return float(psutil.Process(process).memory_info().rss / 1e6)
    except psutil.NoSuchProcess:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=int, default=7)
    parser.add_argument("--task", default="pocket_choice")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--workers", type=int, action="append")
    args = parser.parse_args()
    alone = None
    for workers in args.workers or [1, 2]:
        made = sweep(workers, args)
        rest_s = made.wall_s - made.first_s - made.runs_s / workers
        print(
            f"{workers} worker{'s' if workers > 1 else ''}: {made.runs} runs in {made.wall_s:.1f} s, the first begun "
            f"after {made.first_s:.1f} s; the runs took {made.runs_s:.1f} s together, and the rest took "
            f"{rest_s:.1f} s; peak memory {made.driver:.0f} MB of the sweep, {made.worker:.0f} MB of a worker",
            flush=True,
        )
        if alone is not None:
            print(
                f"{alone.wall_s / made.wall_s:.2f} times as fast, "
                f"{(alone.wall_s - alone.first_s) / (made.wall_s - made.first_s):.2f} times from the first run on"
            )
        alone = alone or made


if __name__ == "__main__":
    main()
