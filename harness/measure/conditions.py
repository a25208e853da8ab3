"""The state of the machine while something is timed: load, stolen time, throttling. What makes a timing doubtful."""

from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from harness.environment import load

SHARED_SHARE = 0.10
"""Share of the machine's CPU time that may go elsewhere before timings are flagged."""


class Conditions(BaseModel):
    """What happened around measurements.

    Attributes:
        threads: intra-op threads of torch.
        load_before, load_after: one-minute load averages.
        others_share: share of the machine's CPU time that other processes used meanwhile.
        steal_share: share that the hypervisor gave to other machines; null where the system does not tell.
        throttled: times that the container's CPU quota stopped it; null without a quota to read.
        governor: the frequency governor; null where it cannot be read.
        gpu_temperature_c: of the device, when the measurements ended; null without one.
    """

    model_config = ConfigDict(extra="forbid")

    threads: int
    load_before: float
    load_after: float
    others_share: float
    steal_share: float | None
    throttled: int | None
    governor: str | None
    gpu_temperature_c: float | None = None

    def doubts(self) -> list[str]:
        """What a reader must know before believing the timings, in words."""
        found = []
        if self.others_share > SHARED_SHARE:
            found.append(f"shared machine: other processes used {self.others_share:.0%} of its CPU time")
        if self.steal_share and self.steal_share > 0.02:
            found.append(f"shared machine: {self.steal_share:.0%} of its CPU time was given to other machines")
        if self.throttled:
            found.append(f"throttled: the CPU quota stopped the process {self.throttled} times")
        return found


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
    except (RuntimeError, ModuleNotFoundError):  # the driver's library is not there
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
