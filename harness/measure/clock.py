"""The clock that a cost is read from: CPU time of one thread, events on a GPU, or wall time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Clock = Literal["thread_time", "wall", "cuda_events"]
Mark = float | torch.cuda.Event
"""A reading of a clock; of a GPU's, the place in its queue."""


def clock_for(device: torch.device) -> Clock:
    """The clock least disturbed by others: a thread's CPU time says little when several threads work."""
    if device.type == "cuda":
        return "cuda_events"
    return "thread_time" if torch.get_num_threads() == 1 else "wall"


def seconds(clock: Clock, call: Callable[[], object]) -> float:
    """Run ``call`` and return how long it took."""
    began = mark(clock)
    call()
    return between(began, mark(clock))


def mark(clock: Clock) -> Mark:
    """The clock now; of a GPU, in the queue of torch's current one (``current``)."""
    if clock == "cuda_events":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
    return time.thread_time() if clock == "thread_time" else time.perf_counter()


def between(begun: Mark, ended: Mark) -> float:
    """Seconds from one reading of a clock to another."""
    if isinstance(begun, float) or isinstance(ended, float):
        return float(ended) - float(begun)  # type: ignore[arg-type]
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a GPU the one in whose queue events are recorded and kernels start; nothing for other devices."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
