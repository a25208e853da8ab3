"""A device that no machine has: tensors on it hold their numbers on the CPU, and refuse to meet those that are not.

It goes by the name "meta", the one device beside the CPU that every build of PyTorch knows how to switch to.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")
_MOVES = frozenset(("_to_copy", "copy_", "_local_scalar_dense"))
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))


class OnCard(Tensor):
    """A tensor of the device, around one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCard":
        tensor = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CARD
        )
        tensor.held = held
        return tensor

    def tolist(self) -> Any:
        return self.held.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_numbered(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_numbered(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _numbered(index: Any) -> Any:
    """An index whose lists are tensors of the CPU: torch would make them on the device, out of reach of this module."""
    if isinstance(index, tuple):
        return tuple(map(_numbered, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, as if it ran where its tensors say that they are."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    cards = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.dim()]
    name, target = func._opname, kwargs.get("device")
    # CUDA too takes indices from the CPU
    is_index = name in _INDEXING and isinstance(args[0], OnCard)
    if cards and others and name not in _MOVES and not is_index:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    plain_args, plain = tree_map(_held, (args, kwargs))
    if target is not None:
        plain["device"] = "cpu"
    output = func(*plain_args, **plain)
    if (torch.device(target) if target is not None else CARD if cards else None) != CARD:
        return output
    changed = {id(tensor.held): tensor for tensor in cards}  # by operators that work in place
    return tree_map(lambda leaf: changed.get(id(leaf), OnCard(leaf)) if isinstance(leaf, Tensor) else leaf, output)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnCard) else leaf


def move(module: nn.Module) -> None:
    """Put a module on the device, tied weights together."""
    moved: dict[int, Tensor] = {}

    def to_card(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            card = OnCard(tensor.detach())
            moved[id(tensor)] = nn.Parameter(card, requires_grad=False) if isinstance(tensor, nn.Parameter) else card
        return moved[id(tensor)]

    kept = list(module.parameters()), list(module.buffers())  # ids stay their own while these live
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = to_card(tensor)  # type: ignore[assignment]
    del kept


@contextmanager
def a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tensors be made on the device inside the ``with`` block."""
    made = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        held = made(data, *args, **kwargs)  # which no dispatch sees
        return held if device is None or torch.device(device) != CARD else OnCard(held)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with _Factories(), torch.no_grad():
        yield
