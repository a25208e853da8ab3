"""Memory of a phase: the process's peak without a sampler, torch's own peaks on a GPU.

Linux keeps the high-water mark of resident memory and forgets it when "5" is written to ``/proc/self/clear_refs``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes while something ran.

    Attributes:
        peak: the most, and ``before`` at the start; of the device's memory on a GPU.
        anonymous, file: resident memory of the process afterwards, by what backs it.
        allocated, reserved: peaks of torch's allocator; null without a GPU.
    """

    peak: int
    before: int
    anonymous: int | None
    file: int | None
    allocated: int | None = None
    reserved: int | None = None


def peak_memory(run: Callable[[], object], device: torch.device) -> Peak | None:
    """The peak while ``run`` runs; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        allocated = torch.cuda.max_memory_allocated(device)
        status = _status()
        return Peak(
            allocated,
            before,
            status.get("RssAnon"),
            status.get("RssFile"),
            allocated,
            torch.cuda.max_memory_reserved(device),
        )
    if not forgets_peaks():
        return None
    before = _status()["VmRSS"]
    run()
    status = _status()
    return Peak(status["VmHWM"], before, status.get("RssAnon"), status.get("RssFile"))


def forgets_peaks() -> bool:
    """Whether the system lets a process reset its high-water mark."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def weight_files_bytes(folder: Path) -> int | None:
    """Bytes of a model's weight files; None if it is no folder with any."""
    files = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)] if folder.is_dir() else []
    return sum(path.stat().st_size for path in files) or None


def _status() -> dict[str, int]:
    """Fields of the process's status that are sizes, in bytes."""
    try:
        lines = [line.split() for line in _STATUS.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
