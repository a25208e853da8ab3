"""The process of a local worker: items on standard input, a line of JSON each; outcomes on standard output."""

import json
import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from harness.core.text import write_what_can_be
from harness.evaluate import quiet
from harness.results.store import Store


def main() -> None:
    """Answer items until standard input ends, as it does when the sweep's own process ends in whatever way."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries and tasks print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its workers
    write_what_can_be()
    quiet.silence()
    orders: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(orders,), daemon=True).start()

    from harness.sweep.carrier import Carrier
    from harness.sweep.items import Item

    results, log, *threads = sys.argv[1:]
    carrier, job = Carrier(Store(Path(results)), Path(log), *map(int, threads)), None
    while True:
        plain = json.loads(orders.get())
        item = Item.model_validate({"job": job, **plain})
        job = item.job
        answers.write(carrier.carry_out(item).model_dump_json() + "\n")
        answers.flush()


def _read(orders: "SimpleQueue[str]") -> None:
    """Pass lines on; end the process with them, whatever it is at: batches that are finished are kept."""
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
