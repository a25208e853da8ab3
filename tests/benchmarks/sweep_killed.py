"""A sweep that is killed at random and resumed against one that is not: their records, times aside, must be equal.

    python -m tests.benchmarks.sweep_killed --kills 5
    python -m tests.benchmarks.sweep_killed --ray

The grid is 42 runs on the bundled model. The sweep's own process and its workers get SIGKILL at a random moment; the
same command is then given again, until it ends by itself. With --ray the sweep is made by a Ray cluster on this machine
(a head and two workers), of which a worker machine goes away once a third of the runs are there. With --folder both
sweeps are kept, and the same command goes on with them.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from harness.results.store import Store
from tests.sweep.cluster import cluster
from tests.sweep.records import timeless

GRID = ["--method", "layer-drop:count=1..6", "--method", "layer-drop:unit=attention,count=1..6"]
GRID += ["--method", "random-skip:executed=0.55..0.9..0.05", "--task", "pocket_choice,pocket_math"]
RUNS = 42


def start(store: Store, args: argparse.Namespace, *more: str) -> subprocess.Popen[bytes]:
    words = ["--limit", str(args.limit), "--batch_size", "8", "--measure", "flops", "--workers", "2", *more]
    command = [sys.executable, "-m", "harness", "sweep", *GRID, *words, "-o", str(store.root)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def require_done(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait():
        sys.exit(f"the sweep ended with exit code {code}")


def finished(store: Store) -> int:
    return sum(folder.finished for folder in store.folders())


def by_killing(store: Store, args: argparse.Namespace) -> str:
    """Kill all of its processes at a random moment, each time after a sixth more of the runs, and start it again."""
    kills = store.root.with_name("kills.txt")
    told = kills.read_text().splitlines() if kills.exists() else []
    for kill in range(len(told), args.kills):
        process, before = start(store, args), finished(store)
        while finished(store) <= before and process.poll() is None:
            time.sleep(0.1)
        time.sleep(random.Random(args.seed + kill).uniform(0, args.most))
        if process.poll() is not None:
            sys.exit(f"the sweep ended before kill {kill + 1}: give a larger --limit or a smaller --most")
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            os.kill(each.pid, signal.SIGKILL)
        process.wait()
        told.append(f"killed: {finished(store)} of {RUNS} runs are finished")
        kills.write_text("".join(f"{line}\n" for line in told))
    print("\n".join(told), flush=True)
    require_done(start(store, args))
    return f"{args.kills} kills"


def on_ray(store: Store, args: argparse.Namespace) -> str:
    """Let a worker machine of the cluster go away when a third of the runs are there."""
    with cluster(workers=2) as machines:
        process = start(store, args, "--launcher", "ray", "--address", machines.address, "--resources", "num_cpus=1")
        while finished(store) < RUNS // 3 and process.poll() is None:
            time.sleep(0.1)
        machines.kill(1)
        print(f"a worker machine is gone: {finished(store)} of {RUNS} runs are finished", flush=True)
        require_done(process)
    return "a worker machine lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--most", type=float, default=2.0, help="seconds after the first run that ended, at the most")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        whole, disturbed = Store(folder / "whole"), Store(folder / ("ray" if args.ray else "killed"))
        require_done(start(whole, args))
        how = on_ray(disturbed, args) if args.ray else by_killing(disturbed, args)
        runs = {folder.id: timeless(folder) for folder in whole.folders()}
        again = {folder.id: timeless(folder) for folder in disturbed.folders()}
    same = sum(runs[run] == again.get(run) for run in runs)
    print(f"{how}; {same} of {len(runs)} records equal, and {len(again) - len(runs)} too many")
    sys.exit(same != len(runs) or len(again) != len(runs))


if __name__ == "__main__":
    main()
