"""The state of the machine while something is timed: load, stolen time, throttling. What makes a timing doubtful."""

from pathlib import Path

import psutil

from harness.core.environment import load
from harness.results.costs import Conditions


class Observer:
    """Watches the machine from its creation until ``conditions`` is asked for."""

    def __init__(self) -> None:
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
        return Conditions(
            threads=torch.get_num_threads(),
            load_before=self._load,
            load_after=load(),
            others_share=round(min(max((busy - (_own_seconds() - self._own)) / whole, 0.0), 1.0), 4),
            steal_share=None if stolen is None else round(stolen / whole, 4),
            throttled=None if throttled is None or self._throttled is None else throttled - self._throttled,
            governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            gpu_temperature_c=_gpu_temperature(),
        )


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


def _gpu_temperature() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.temperature())
    except (RuntimeError, ModuleNotFoundError):  # without the driver's library
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
