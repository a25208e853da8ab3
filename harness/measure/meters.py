"""What energy can be read from: hardware counters where they exist, codecarbon's estimates where they do not.

A meter is opened for a window of seconds, never for a request: counters are updated every 1 to 100 ms and estimates
are quantised. A component that cannot be read is null, never 0.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness.core.strangers import message_of
from harness.measure.gpu import nvml_handle
from harness.results.costs import EnergyPart

if TYPE_CHECKING:
    import torch

POWERCAP: Final = Path("/sys/class/powercap")


class Meter(Protocol):
    """Reads the energy of a window."""

    def begin(self) -> None:
        """Start a window."""

    def end(self) -> dict[str, EnergyPart]:
        """End it: joules by component ("cpu", "gpu", "ram")."""


@dataclass
class RaplMeter:
    """The processor's own counters, one for each package (Linux powercap; Intel and AMD).

    Attributes:
        read: reads a counter's file, so that tests can script one.
    """

    domains: tuple[Path, ...]
    read: Callable[[Path], int] = field(default=lambda path: int(path.read_text()))
    _began: dict[Path, int] = field(default_factory=dict)

    def begin(self) -> None:
        """Note every counter."""
        self._began = {domain: self.read(domain / "energy_uj") for domain in self.domains}

    def end(self) -> dict[str, EnergyPart]:
        """Microjoules since then; a counter that wrapped once is continued."""
        total = 0
        for domain, began in self._began.items():
            used = self.read(domain / "energy_uj") - began
            total += used if used >= 0 else used + self.read(domain / "max_energy_range_uj")
        return {
            "cpu": EnergyPart(joules=total / 1e6, source="rapl_package", provenance="measured_counter", scope="machine")
        }


def rapl_domains(root: Path = POWERCAP) -> tuple[Path, ...]:
    """Readable package counters; parts of a package, and mirrors of another's counter, are left out."""
    by_counter: dict[int, Path] = {}  # microjoules: a mirror shows the same number
    for domain in sorted(root.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            if (domain / "name").read_text().startswith("package"):
                by_counter.setdefault(int((domain / "energy_uj").read_text()), domain)
    return tuple(by_counter.values())


@dataclass
class NvmlMeter:
    """A GPU's energy counter (Volta and later), millijoules of the whole device."""

    device: "torch.device"
    _began: int = 0

    def begin(self) -> None:
        """Note the counter."""
        self._began = self._counter()

    def end(self) -> dict[str, EnergyPart]:
        """Joules since then."""
        joules = (self._counter() - self._began) / 1e3
        return {"gpu": EnergyPart(joules=joules, source="nvml_counter", provenance="measured_counter", scope="device")}

    def _counter(self) -> int:
        import pynvml

        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(nvml_handle(self.device)))


class UnreadGpu:
    """A GPU that does the work and has no counter: joules of the others alone would be too few."""

    def begin(self) -> None:
        """Nothing can be noted."""

    def end(self) -> dict[str, EnergyPart]:
        """A component that is null."""
        return {"gpu": EnergyPart(joules=None, source="none", provenance="none", scope="device")}


@dataclass
class ZeusMeter:
    """The processor's energy through Zeus, whose daemon reads counters that users may not."""

    monitor: Any

    def begin(self) -> None:
        """Open a window."""
        self.monitor.begin_window("harness")

    def end(self) -> dict[str, EnergyPart]:
        """Joules of all packages; nothing where Zeus found no counter, which it reports as 0."""
        window = self.monitor.end_window("harness")
        used = window.cpu_energy
        joules = sum(used.values()) if used else None
        if joules is None:
            return {}
        return {"cpu": EnergyPart(joules=joules, source="zeus_cpu", provenance="measured_counter", scope="machine")}


@dataclass
class CodecarbonMeter:
    """Codecarbon's estimates: processor time times a nominal power, and a constant for memory.

    The offline tracker alone: the online one asks the network where it is, and says Canada if nobody answers.
    """

    _tracker: Any = None

    def __post_init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # its import sets another

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # for carbon, which is not used: joules are
            output_methods=[],
            log_level="critical",
            allow_multiple_runs=True,
            tracking_mode="process",
            measure_power_secs=1,
        )
        # the first task looks for the hardware, which takes seconds and fails silently
        self.begin()
        if self._tracker.stop_task("harness") is None or not getattr(self._tracker, "_hardware", None):
            raise RuntimeError("codecarbon found no hardware to track")

    def begin(self) -> None:
        """Start a task."""
        self._tracker.start_task("harness")

    def end(self) -> dict[str, EnergyPart]:
        """Joules of the processor's share and of the memory."""
        data = self._tracker.stop_task("harness")
        if data is None:
            return {}
        cpu = next((part for part in self._tracker._hardware if type(part).__name__ == "CPU"), None)
        mode = getattr(cpu, "_mode", "constant")
        measured = mode == "intel_rapl"
        return {
            "cpu": EnergyPart(
                joules=data.cpu_energy * 3.6e6,  # from kWh
                source="codecarbon_rapl" if measured else "psutil_load_tdp" if mode == "cpu_load" else "constant",
                provenance="measured_counter"
                if measured
                else "estimated_load_tdp"
                if mode == "cpu_load"
                else "estimated_constant",
                scope="machine" if measured else "process",
                watts_assumed=None if measured else getattr(cpu, "_tdp", None),
            ),
            "ram": EnergyPart(
                joules=data.ram_energy * 3.6e6, source="constant", provenance="estimated_constant", scope="process"
            ),
        }


def meters(device: "torch.device") -> list[Meter]:
    """Every meter that works here, the more trusted last: its components replace an earlier one's."""
    others = [*_estimates(), *_zeus(), *_rapl()]
    if device.type == "cpu" or not others:
        return others + list(_nvml(device))
    return [*others, *(list(_nvml(device)) or [UnreadGpu()])]


def _estimates() -> Iterator[Meter]:
    with suppress(ImportError, RuntimeError):
        yield CodecarbonMeter()


def _zeus() -> Iterator[Meter]:
    with suppress(Exception):  # an optional library that looks for devices; whatever fails, there is no such meter
        from zeus.monitor import ZeusMonitor

        monitor = ZeusMonitor(gpu_indices=[])
        if monitor.cpu_indices:
            yield ZeusMeter(monitor)


def _rapl() -> Iterator[Meter]:
    domains = rapl_domains()
    if domains:
        yield RaplMeter(domains)


def _nvml(device: "torch.device") -> Iterator[Meter]:
    if why_no_counter(device) is None:
        yield NvmlMeter(device)


def why_no_counter(device: "torch.device") -> str | None:
    """Why the energy counter of a GPU cannot be read; None where it can."""
    if device.type != "cuda":
        return f"no counter is read of a device of kind {device.type}"
    try:
        NvmlMeter(device).begin()
    except ImportError:
        return "the driver's library cannot be read: pip install nvidia-ml-py"
    except Exception as error:  # the driver's library raises classes of its own
        return f"the energy counter of {device} cannot be read through NVML: {message_of(error)}"
    return None


def measured_sources(devices: "Sequence[torch.device]" = ()) -> list[str]:
    """The hardware counters that can be read here, in words, with those of some GPUs."""
    sources = [f"RAPL, {len(rapl_domains())} packages"] if rapl_domains() else []
    sources += ["the processor through Zeus" for _ in _zeus()]
    return sources + [f"{device}'s counter (NVML)" for device in devices for _ in _nvml(device)]


def why_not_measured(root: Path = POWERCAP) -> str:
    """Why the processor's energy cannot be read here, and what would help."""
    domains = list(root.glob("intel-rapl:*")) if root.is_dir() else []
    if not domains:
        return "no energy counter: this machine (a virtual one, a container, or not Linux) shows no powercap domain"
    return f"the counters in {root} are for root alone: chmod a+r {root}/intel-rapl:*/energy_uj, or run Zeus's daemon"
