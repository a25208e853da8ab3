"""What is known of each full block of a row's keys, made once and kept beside them in the cache.

Blocks are counted from a row's first token, so that padding moves none of them. What is kept is the cache layer's own:
it counts as bytes of the cache and goes when the layer goes. It is made anew where the layer's keys were changed since
it was made: rows taken out or put in another order, tokens taken back.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.model.forwards import CACHE_NAMES
from harness.model.layouts import LAYER_INDEX_NAMES
from harness.model.sparse_attention.places import at

Summary = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
"""Of keys and values by block, [rows, kv heads, blocks, size, width], what is kept: [rows, kv heads, blocks, any]."""

_NAME: Final = "of_blocks"
"""The attribute of a cache's layer."""


@dataclass
class _Kept:
    """What a layer of the cache holds beside keys and values.

    Attributes:
        keys: the layer's keys that it was made of.
        first: the column of each row's first token, [rows].
        tensors: [rows, kv heads, blocks, any].
    """

    keys: "weakref.ref[torch.Tensor]"
    first: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]


class Blocks:
    """Summaries of blocks of ``size`` keys.

    Args:
        summary: what is kept of a block, from its keys and values alone.
    """

    def __init__(self, size: int, summary: Summary) -> None:
        self._size, self._summary = size, summary
        self._holders: dict[int, Any] = {}  # the layer of the cache that a running attention writes to
        self._kept: dict[int, _Kept | None] = {}

    @contextmanager
    def kept(self, model: Decoder) -> Iterator[None]:
        """Find the cache of each attention inside the ``with`` block, and keep what is made there."""
        with ExitStack() as undo:
            for block in model.anatomy.blocks:
                attention, before = block.attention.modules[0], self._before(block.index)
                undo.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
                after = attention.register_forward_hook(self._after(block.index), always_call=True)
                undo.callback(after.remove)
            yield

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
            layers = getattr(cache, "layers", None)
            slot = next((getattr(module, name) for name in LAYER_INDEX_NAMES if hasattr(module, name)), index)
            if not isinstance(layers, list) or slot >= len(layers):
                return
            self._holders[index] = holder = layers[slot]
            kept: _Kept | None = getattr(holder, _NAME, None)
            keys = getattr(holder, "keys", None)
            self._kept[index] = kept if kept is not None and keys is not None and kept.keys() is keys else None

        return before

    def _after(self, index: int) -> Callable[..., None]:
        def after(*_: Any) -> None:
            self._holders.pop(index, None)
            self._kept.pop(index, None)

        return after

    def of(self, layer: int, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The summaries of all full blocks, [rows, kv heads, blocks, any].

        A row with fewer full blocks than another has numbers without a meaning in the places of the others.

        Args:
            layer: index of the dense layer.
            first: the column of each row's first token, [rows].
        """
        rows, kept, holder = tuple(first.tolist()), self._kept.get(layer), self._holders.get(layer)
        ends = [k.shape[2] - start for start in rows]
        tensors = kept.tensors if kept is not None and kept.first == rows else ()
        begun, full = tensors[0].shape[2] if tensors else 0, max(ends) // self._size
        if begun < full or not tensors:
            made = self._summary(*self._blocks(k, v, first, begun, full))
            tensors = tuple(torch.cat(pair, 2) for pair in zip(tensors, made, strict=True)) if tensors else made
        if holder is not None:
            whole = min(ends) // self._size  # blocks that are full in all rows
            setattr(holder, _NAME, _Kept(weakref.ref(k), rows, tuple(each[:, :, :whole] for each in tensors)))
        return tensors

    def _blocks(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, begun: int, full: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the blocks from ``begun`` to ``full``, [rows, kv heads, blocks, size, width]."""
        span = slice(begun * self._size, full * self._size)
        if not first.any():
            parts = [tensor[:, :, span] for tensor in (k, v)]
        else:
            columns = first[:, None] + torch.arange(span.start, span.stop, device=k.device)  # [rows, tokens]
            parts = [at(tensor, columns.clamp(max=k.shape[2] - 1)) for tensor in (k, v)]
        rows, heads = k.shape[:2]
        key, value = (part.reshape(rows, heads, full - begun, self._size, part.shape[-1]) for part in parts)
        return key, value
