"""A sweep that is killed at random and resumed against one that is not: their records, times aside, must be equal.

    python -m tests.benchmarks.sweep_killed --kills 5

The grid is 42 runs on the bundled model. The sweep's own process and its workers get SIGKILL at a random moment; the
same command is then given again, until it ends by itself.
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
from typing import Any

import psutil

from harness.results.store import RunFolder, Store

GRID = ["--method", "layer-drop:count=1..6", "--method", "layer-drop:unit=attention,count=1..6"]
GRID += ["--method", "random-skip:executed=0.2..0.9..0.1", "--task", "pocket_choice,pocket_math"]


def command(folder: Path, args: argparse.Namespace) -> list[str]:
    words = ["--limit", str(args.limit), "--batch_size", "8", "--measure", "flops", "--workers", str(args.workers)]
    return [sys.executable, "-m", "harness", "sweep", *GRID, *words, "-o", str(folder)]


def sweep(folder: Path, args: argparse.Namespace, after_s: float | None) -> bool:
    """Run it, and kill it after so many seconds; whether it ended by itself."""
    process = subprocess.Popen(command(folder, args), stdout=subprocess.DEVNULL)
    try:
        code = process.wait(after_s)
    except subprocess.TimeoutExpired:
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in everybody:
            os.kill(each.pid, signal.SIGKILL)
        process.wait()
        return False
    if code:
        sys.exit(f"the sweep ended with exit code {code}")
    return True


def kept(folder: RunFolder) -> dict[str, Any]:
    """What must not depend on how often a run was stopped."""
    record = folder.record()
    observed = record.model_dump(include={"id", "scores", "trace", "memory", "method", "evaluation", "baseline"})
    return observed | {"samples": (folder.path / "samples.jsonl").read_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, began = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Store(Path(scratch) / "whole"), Store(Path(scratch) / "killed")
        sweep(whole.root, args, None)
        whole_s, kills = time.monotonic() - began, 0
        while not sweep(killed.root, args, rng.uniform(0.1, 0.4) * whole_s if kills < args.kills else None):
            kills += 1
            print(f"killed: {sum(folder.finished for folder in killed.folders())} runs are finished", flush=True)
        runs = {folder.id: kept(folder) for folder in whole.folders()}
        again = {folder.id: kept(folder) for folder in killed.folders()}
    same = sum(runs[run] == again.get(run) for run in runs)
    print(f"{kills} kills; {same} of {len(runs)} records equal, and {len(again) - len(runs)} too many")


if __name__ == "__main__":
    main()
