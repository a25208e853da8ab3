"""The child process of an isolated launch: an order of units of work on standard input."""

import sys

from harness.core.errors import HarnessError
from harness.core.strangers import explained
from harness.core.text import printable, write_what_can_be
from harness.run.launch import Order


def main() -> None:
    """Carry out the units; what they leave goes into the folder of results."""
    from harness.cli.display import Reporter
    from harness.evaluate import quiet
    from harness.results.store import Store
    from harness.run.session import Session

    quiet.silence()
    write_what_can_be()
    order = Order.model_validate_json(sys.stdin.read())
    try:
        session = Session(order.job, Store(order.results), Reporter())
        with explained():
            for unit in order.units:
                session.carry_out(unit)
    except HarnessError as error:
        print(f"harness: {printable(error, keep=chr(10))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:  # the parent was stopped too, and says so
        sys.exit(130)


if __name__ == "__main__":
    main()
