"""What happened on the machine while something was timed, and which of it makes a timing doubtful."""

from typing import Final

from harness.results.section import Section

SHARED_SHARE: Final = 0.10
"""Share of the machine's CPU time that may go elsewhere before timings are flagged."""
CLOCK_CHANGE: Final = 0.10
"""Change of a clock frequency above which they are."""


class Conditions(Section):
    """What happened around measurements.

    Attributes:
        threads: intra-op threads of torch.
        load_before, load_after: one-minute load averages.
        others_share: share of the machine's CPU time that other processes used meanwhile.
        steal_share: share that the hypervisor gave to other machines; null where the system does not tell.
        throttled: times that the container's CPU quota stopped it; null without a quota to read.
        governor: the frequency governor; null where it cannot be read.
        gpu_temperature_c: of the device, when the measurements ended; null without one.
        clock_mhz: frequency of the fastest core while it worked, before and after; null where it cannot be read.
        gpu_clock_mhz: the same of the device's multiprocessors.
        gpu_throttled: what slowed the device down when the measurements ended; null where it cannot be read.
        gpu_others: other processes that computed on the device; null where it cannot be read.
    """

    threads: int
    load_before: float
    load_after: float
    others_share: float
    steal_share: float | None
    throttled: int | None
    governor: str | None
    gpu_temperature_c: float | None = None
    clock_mhz: tuple[float, float] | None = None
    gpu_clock_mhz: tuple[float, float] | None = None
    gpu_throttled: list[str] | None = None
    gpu_others: int | None = None

    def doubts(self) -> list[str]:
        """What a reader must know before believing the timings, in words."""
        doubts = []
        if self.others_share > SHARED_SHARE:
            doubts.append(f"shared machine: other processes used {self.others_share:.0%} of its CPU time")
        if self.steal_share and self.steal_share > 0.02:
            doubts.append(f"shared machine: {self.steal_share:.0%} of its CPU time was given to other machines")
        if self.throttled:
            doubts.append(f"throttled: the CPU quota stopped the process {self.throttled} times")
        for whose, clock in (("processor", self.clock_mhz), ("GPU", self.gpu_clock_mhz)):
            if clock is not None and max(clock) > (1 + CLOCK_CHANGE) * min(clock):
                doubts.append(
                    f"clock changed: the {whose} ran at {clock[0]:.0f} MHz before and {clock[1]:.0f} MHz after"
                )
        if self.gpu_throttled:
            doubts.append(f"throttled: the GPU was slowed down by {', '.join(self.gpu_throttled)}")
        if self.gpu_others:
            doubts.append(f"shared GPU: {self.gpu_others} other processes computed on it")
        return doubts
