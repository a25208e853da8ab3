"""A key-value cache for layer paths: a slot for each pass of each layer, and a length that no slot decides.

transformers reads positions and mask sizes off the first slot of each kind (full, sliding), which is wrong as soon as
a row skips that layer, and keeps one slot per layer, which is wrong as soon as a layer runs twice. Here a counter of
the cache's own states the length of the sequence, a second pass has slots of its own, and a slot holds only the rows
that run it: legal because a row's path is fixed when its prompt is read.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, StaticLayer

from harness.core.errors import MethodError

LayerPath = tuple[int, ...]
"""How often a row runs each layer of the dense model: 0, 1 or 2 times."""


class RoutedCache(Cache):  # type: ignore[misc] # transformers has no type information here
    """Keys and values of rows that take different paths.

    Slot ``number * layers + layer`` holds the keys and values of a layer's pass, [rows of the pass, heads, tokens,
    head width].

    Attributes:
        paths: the rows' paths, set once, when the prompt has been read; None before.
        seen: tokens of each row that have gone through the model, padding included; on the device, and counted in
            place, where the cache is of fixed size.
    """

    def __init__(self, config: Any, passes: int) -> None:
        slots = [layer for _ in range(passes) for layer in DynamicCache(config=config).layers]
        super().__init__(layers=slots)
        self._layers = len(slots) // passes
        self._windows = [layer.sliding_window if layer.is_sliding else None for layer in slots]
        self.paths: list[LayerPath] | None = None
        self.seen: int | torch.Tensor = 0
        self._length: int | None = None

    def fix(self, length: int, device: torch.device) -> None:
        """Hold so many tokens of each row in tensors whose sizes and places stay, before the first forward."""
        self.layers: Any = [StaticLayer(length) for _ in self._windows]
        self._length, self.seen = length, torch.zeros((), dtype=torch.long, device=device)

    def commit(self, tokens: int) -> None:
        """Count the tokens of a finished forward."""
        self.seen += tokens

    def slots(self, number: int) -> "Cache | PassSlots":
        """The cache as a layer sees it in its pass of this number, from 0."""
        return PassSlots(self, number * self._layers) if number else self

    def get_seq_length(self, layer_idx: int = 0) -> "int | torch.Tensor":
        """Tokens seen, however many the slot holds."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key positions that attention reads, and the position of the first, as transformers' own slots count them."""
        if self._length is not None:
            return self._length, 0
        assert isinstance(self.seen, int)
        window = self._windows[layer_idx]
        if window is None:
            return self.seen + query_length, 0
        cached = min(self.seen, window - 1)
        return cached + query_length, self.seen - cached

    @property
    def batch_size(self) -> int:
        """Rows of the batch, or -1 before the first forward."""
        return -1 if self.paths is None else len(self.paths)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise MethodError("rows of a routed cache cannot be moved, repeated or cut: no beams, no rollback")

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = _refuse


class PassSlots:
    """The cache as a layer sees it in a later pass: only the slot that it writes to differs."""

    def __init__(self, cache: RoutedCache, offset: int) -> None:
        self._cache, self._offset = cache, offset

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [rows, heads, tokens, head width], to the slot of the pass; see Cache."""
        slot = layer_idx + self._offset
        updated: tuple[torch.Tensor, torch.Tensor] = self._cache.update(keys, values, slot, *args, **kwargs)
        return updated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
