"""The state of the machine while something is timed: load, clocks, throttling, spread. What makes a timing doubtful."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil

from harness.core.environment import load
from harness.measure.gpu import gpu_state
from harness.results.conditions import Conditions

if TYPE_CHECKING:
    import torch

SPREAD: Final = 0.10
"""Interquartile range over median of the typical request's times, above which they are doubted."""
OUTLIER: Final = 1.5
"""Times a request's median that the slowest of its rounds may take before the request counts as disturbed."""
DISTURBED: Final = (2, 0.10)
"""Disturbed requests, and their share, from which times are doubted: medians over rounds bear a single pause."""
WORK_S: Final = 0.02
"""Seconds of work before a clock is read: an idle processor runs slowly, and says nothing of a busy one."""


def spread_doubts(rounds: Sequence[Sequence[float]]) -> list[str]:
    """Why not to trust times that vary from round to round, [requests][rounds], in words."""
    quartiles = np.array([np.quantile(times, [0.25, 0.5, 0.75]) for times in rounds])  # [requests, 3]
    spread = float(np.median((quartiles[:, 2] - quartiles[:, 0]) / quartiles[:, 1]))
    slowest = np.array([max(times) for times in rounds]) / quartiles[:, 1]  # [requests]
    doubts = []
    if spread > SPREAD:
        doubts.append(f"unsteady: the interquartile range of a request's times is {spread:.0%} of their median")
    count = int((slowest > OUTLIER).sum())
    if count >= max(DISTURBED[0], DISTURBED[1] * len(rounds)):
        doubts.append(
            f"unsteady: {count} of {len(rounds)} requests took more than {OUTLIER:g} times their median in a round, "
            f"up to {slowest.max():.1f} times"
        )
    return doubts


class Observer:
    """Watches the machine from its creation until ``conditions`` is asked for."""

    def __init__(self, device: "torch.device | None" = None) -> None:
        self._device = device
        self._clock, self._gpu = _clock_mhz(), gpu_state(device)
        self._load = load()
        self._machine, self._own = psutil.cpu_times(), _own_seconds()
        self._throttled = _throttled()

    def conditions(self) -> Conditions:
        """What happened since the observer was made."""
        import torch

        now = psutil.cpu_times()
        whole = max(sum(now[:8]) - sum(self._machine[:8]), 1e-9)
        idle = now.idle - self._machine.idle + getattr(now, "iowait", 0.0) - getattr(self._machine, "iowait", 0.0)
        stolen = now.steal - self._machine.steal if hasattr(now, "steal") else None
        busy = whole - idle - (stolen or 0.0)
        throttled = _throttled()
        clock, gpu = _clock_mhz(), gpu_state(self._device)
        return Conditions(
            threads=torch.get_num_threads(),
            load_before=self._load,
            load_after=load(),
            others_share=round(min(max((busy - (_own_seconds() - self._own)) / whole, 0.0), 1.0), 4),
            steal_share=None if stolen is None else round(stolen / whole, 4),
            throttled=None if throttled is None or self._throttled is None else throttled - self._throttled,
            governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            gpu_temperature_c=None if gpu is None else gpu.temperature_c,
            clock_mhz=_both(self._clock, clock),
            gpu_clock_mhz=_both(*(None if state is None else state.clock_mhz for state in (self._gpu, gpu))),
            gpu_throttled=None if gpu is None else gpu.throttled,
            gpu_others=None if gpu is None else gpu.others,
        )


def _both(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (before, after)


def _clock_mhz() -> float | None:
    """The frequency of the fastest core, which is this thread's after some work; None where none is told."""
    began = time.perf_counter()
    while time.perf_counter() - began < WORK_S:
        pass
    try:
        cores = [core.current for core in psutil.cpu_freq(percpu=True) or ()]
    except (AttributeError, NotImplementedError, OSError, RuntimeError):  # psutil where the system has no such file
        return None
    return round(max(cores), 1) if any(cores) else None


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _throttled() -> int | None:
    """How often the control group's quota stopped this container."""
    for path in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        for line in (_read(path) or "").splitlines():
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
