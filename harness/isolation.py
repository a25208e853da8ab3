"""The cost pass in a process of its own: nothing of the evaluation is in its memory, caches or threads."""

import subprocess
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.spec import Job


def measure_isolated(job: Job, results: Path) -> None:
    """Run the cost pass of a finished job in a fresh interpreter, which completes the records on disk.

    Raises:
        HarnessError: it failed; its own message is on standard error.
    """
    command = [sys.executable, "-m", "harness.isolation", str(results)]
    done = subprocess.run(command, input=job.model_dump_json(), text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        raise HarnessError("the isolated cost pass failed; the scores are kept, the costs are not measured")


def main() -> None:
    """The child: a job on standard input, the folder of results as argument."""
    from harness.cli.display import Reporter
    from harness.evaluate import quiet
    from harness.session import Session
    from harness.store import Store

    quiet.silence()
    try:
        Session(Job.model_validate_json(sys.stdin.read()), Store(Path(sys.argv[1])), Reporter()).measure_costs()
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:  # the parent was stopped too, and says so
        sys.exit(130)


if __name__ == "__main__":
    main()
