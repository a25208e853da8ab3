"""CPU time of commands that look something up, and of checking a method: mostly what they import.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.start_up --rounds 5
    OMP_NUM_THREADS=1 python -m tests.benchmarks.start_up --command "check layer-drop" --rounds 3

User time of whole processes with all that they started, the least of some rounds, which other work on the machine
disturbs little. Targets: ``harness doctor`` at most 3 s, ``harness ls`` at most 0.5 s for what it lists by default.
``python -X importtime -m harness doctor`` shows where the time goes. Processes that outlive the command are counted on
Linux alone.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from resource import RUSAGE_CHILDREN, getrusage

COMMANDS = ("--help", *(f"ls {what}" for what in ("methods", "tasks", "suites", "models", "runs", "states")), "doctor")
_BE_PARENT_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER


def seconds(command: str) -> float:
    """User time of one call, with that of its children, also of those that it leaves behind."""
    before = getrusage(RUSAGE_CHILDREN).ru_utime
    words = [sys.executable, "-m", "harness", *command.split()]
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    return getrusage(RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", help=f"by default: {', '.join(COMMANDS)}")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_BE_PARENT_OF_ORPHANS, 1, 0, 0, 0)
    print("| command | user time, s |\n|---|---|")
    for command in args.command or COMMANDS:
        print(f"| `harness {command}` | {min(seconds(command) for _ in range(args.rounds)):.2f} |", flush=True)


if __name__ == "__main__":
    main()
