"""The cost pass in a process of its own: nothing of the evaluation is in its memory, caches or threads."""

import subprocess
import sys
from pathlib import Path

from harness.core.errors import HarnessError
from harness.run.spec import Job


def measure_isolated(job: Job, results: Path) -> None:
    """Run the cost pass of a finished job in a fresh interpreter, which completes the records on disk.

    Raises:
        HarnessError: it failed; its own message is on standard error.
    """
    command = [sys.executable, "-m", "harness.cli.isolated", str(results)]
    done = subprocess.run(command, input=job.model_dump_json(), text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        raise HarnessError("the isolated cost pass failed; the scores are kept, the costs are not measured")
