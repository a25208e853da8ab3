"""Memory of a phase: the process's peak without a sampler, torch's own peaks on a GPU.

Linux keeps the high-water mark of resident memory and forgets it when "5" is written to ``/proc/self/clear_refs``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.contract.decoder import Decoder

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


def peak_memory(run: Callable[[], object], device: torch.device, beside: Sequence[torch.device] = ()) -> Peak | None:
    """The peak while ``run`` runs; None where the system does not tell.

    Args:
        device: which works.
        beside: other GPUs that a model is spread over; each one's own peak is added.
    """
    if device.type == "cuda":
        cards = dict.fromkeys((device, *beside))
        for card in cards:
            torch.cuda.reset_peak_memory_stats(card)
        before = sum(torch.cuda.memory_allocated(card) for card in cards)
        run()
        allocated = sum(torch.cuda.max_memory_allocated(card) for card in cards)
        status = _status()
        return Peak(
            allocated,
            before,
            status.get("RssAnon"),
            status.get("RssFile"),
            allocated,
            sum(torch.cuda.max_memory_reserved(card) for card in cards),
        )
    if not forgets_peaks():
        return None
    before = _status()["VmRSS"]
    run()
    status = _status()
    return Peak(status["VmHWM"], before, status.get("RssAnon"), status.get("RssFile"))


def held(model: Decoder) -> list[torch.Tensor]:
    """All tensors of the model and of what methods added to it, each once."""
    modules = [model.module, *(added.module for added in model.auxiliaries)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return list({id(tensor): tensor for tensor in tensors}.values())


@contextmanager
def set_aside(model: Decoder, dense: Sequence[torch.Tensor]) -> Iterator[None]:
    """Keep off the device what the attached methods took out of the model, and put it back, bit for bit.

    Methods come off again, so the dense model's own weights wait for them: on a GPU they would be measured with a model
    that has them no more. On a CPU they would wait in the same memory, and nothing moves.

    Args:
        dense: ``held`` of the model before the methods were attached.
    """
    if model.device.type == "cpu":
        yield
        return
    kept = {_storage(tensor) for tensor in held(model)}
    users = Counter(map(_storage, dense))
    # a storage of several tensors would not be shared any more when it is back
    gone = [tensor for tensor in dense if _storage(tensor) not in kept and users[_storage(tensor)] == 1]
    places = [(tensor, tensor.device) for tensor in gone]
    try:
        for tensor in gone:
            tensor.data = moved(tensor.data, torch.device("cpu"))
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # what was reserved for them is not the methods' either
        yield
    finally:
        for tensor, place in places:
            tensor.data = moved(tensor.data, place)


def moved(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """A tensor in another place; the same one where it is there."""
    return tensor.to(place)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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
