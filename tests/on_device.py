"""Tensors that pretend to be on another device than the host, and count what a real one would make the host wait for.

On a CPU nothing is waited for, so a host synchronisation leaves no trace there. Here the inputs of a model, everything
that is computed with them and everything that is made with a ``device=`` is ``Remote``; what reads a ``Remote`` tensor
on the host, or brings values from the host in a way that CUDA waits for, is counted by its name.
"""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "is_nonzero", "equal")
_SIZED_BY_VALUES = ("nonzero", "argwhere", "masked_select", "unique")
_INDEXING = ("__getitem__", "__setitem__")


class Remote(torch.Tensor):
    """A tensor on the pretended device; what is computed with one is one."""


class Waits(TorchFunctionMode):
    """Counts, inside the ``with`` block, the calls that a device's host would wait in.

    Attributes:
        calls: by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_remote = bool(args) and isinstance(args[0], Remote)
        if is_remote and name in _READS + _SIZED_BY_VALUES:
            self.calls[name] += 1
        if is_remote and name in _INDEXING and any(map(_is_waited_for, _parts(args[1]))):
            self.calls[name] += 1
        if name == "tensor" and "device" in kwargs and args[0]:
            self.calls["torch.tensor"] += 1  # CUDA waits until a list has been copied; an empty one needs no copy
        is_placed = kwargs.get("device") is not None
        if name == "to" and any(isinstance(each, torch.device) for each in args[1:]):
            is_placed = True
            if not is_remote and "non_blocking" not in kwargs:
                self.calls["to"] += 1
        result = func(*args, **kwargs)
        if name == "cpu" and is_remote:
            return result.as_subclass(torch.Tensor)
        if is_placed and isinstance(result, torch.Tensor):
            return result.as_subclass(Remote)
        return result


def remote(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the pretended device."""
    return tensor.as_subclass(Remote)


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_waited_for(index: Any) -> bool:
    """An index of a list is copied to the device; one of bools is sized by its values."""
    return isinstance(index, list) or (isinstance(index, torch.Tensor) and index.dtype is torch.bool)
