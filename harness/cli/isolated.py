"""The child process of an isolated cost pass: a job on standard input, the folder of results as argument."""

import sys
from pathlib import Path

from harness.core.errors import HarnessError
from harness.run.spec import Job


def main() -> None:
    """The child: a job on standard input, the folder of results as argument."""
    from harness.cli.display import Reporter
    from harness.evaluate import quiet
    from harness.results.store import Store
    from harness.run.session import Session

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
