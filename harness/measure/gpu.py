"""The state of an NVIDIA GPU, from its driver: clock, temperature, what slows it down, who else computes on it."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

WORK_S: Final = 0.2
"""Seconds of work before the clock is read: an idle device runs at a fraction of its clock."""
_REASONS: Final = {
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature",
    0x40: "its temperature (in hardware)",
    0x80: "its power supply",
}
"""Bits of NVML's clock event reasons that are slowdowns; others say that it is idle or how it was set."""


@dataclass(frozen=True)
class GpuState:
    """A device while it works; None of what its driver does not tell.

    Attributes:
        clock_mhz: of the multiprocessors.
        throttled: what slows it down, in words.
        others: other processes that compute on it.
    """

    clock_mhz: float | None
    temperature_c: float | None
    throttled: list[str] | None
    others: int | None


def gpu_state(device: "torch.device | None") -> GpuState | None:
    """The state of a device after some work; None of another kind, or where the driver's library does not tell."""
    if device is None or device.type != "cuda":
        return None
    with suppress(Exception):  # an optional library, whose driver raises classes of its own
        return _read(device)
    return None


def _read(device: "torch.device") -> GpuState:
    import pynvml
    import torch

    handle = nvml_handle(device)
    square = torch.randn(2048, 2048, device=device)
    began = time.perf_counter()
    while time.perf_counter() - began < WORK_S:
        torch.cuda.synchronize(device)
        for _ in range(10):
            square @ square
    clock = _told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
    temperature = _told(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    mask = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    processes = _told(lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    torch.cuda.synchronize(device)
    return GpuState(
        clock_mhz=clock,
        temperature_c=temperature,
        throttled=None if mask is None else throttling(int(mask)),
        others=None if processes is None else max(int(processes) - 1, 0),  # this process is one of them
    )


def nvml_handle(device: "torch.device") -> Any:
    """What the driver's library calls a device.

    By the device's own identity: CUDA_VISIBLE_DEVICES, and CUDA's order by speed, number devices for torch alone.

    Raises:
        Exception: of many classes, where torch or the driver's library does not know the device.
    """
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None where there is none, or its library does not tell."""
    with suppress(Exception):  # an optional library, whose driver raises classes of its own
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    return None


def _told(read: Callable[[], float]) -> float | None:
    """What the driver says; None where it does not."""
    with suppress(Exception):  # of the driver's own classes
        return float(read())
    return None


def throttling(mask: int) -> list[str]:
    """What slows a device down, in words, by NVML's bits."""
    return [reason for bit, reason in _REASONS.items() if mask & bit]
