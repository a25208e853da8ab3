"""The clock that a cost is read from: CPU time of one thread, events on a GPU, or wall time."""

import time
from collections.abc import Callable
from typing import Literal

import torch

Clock = Literal["thread_time", "wall", "cuda_events"]


def clock_for(device: torch.device) -> Clock:
    """The clock least disturbed by others: a thread's CPU time says little when several threads work."""
    if device.type == "cuda":
        return "cuda_events"
    return "thread_time" if torch.get_num_threads() == 1 else "wall"


def seconds(clock: Clock, call: Callable[[], object]) -> float:
    """Run ``call`` and return how long it took."""
    if clock == "cuda_events":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    read = time.thread_time if clock == "thread_time" else time.perf_counter
    began = read()
    call()
    return read() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
