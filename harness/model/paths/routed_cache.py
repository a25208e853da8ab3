"""A key-value cache for layer paths: a slot for each pass of each layer, and a length that no slot decides.

transformers reads positions and mask sizes off the first slot of each kind, which is wrong as soon as a row skips
that layer, and keeps one slot per layer, which is wrong as soon as a layer runs twice. Here a counter of its own
says how long the sequence is, a second pass has slots of its own, and a slot holds the rows that run it alone:
legal because a row's path is fixed when its prompt is read.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from harness.core.errors import MethodError

Path = tuple[int, ...]
"""How often a row runs each layer of the dense model: 0, 1 or 2 times."""


class RoutedCache(Cache):  # type: ignore[misc] # transformers has no type information here
    """Keys and values of rows that take different paths.

    Attributes:
        paths: the rows' paths, set once, when the prompt has been read; None before.
        seen: tokens of each row that have gone through the model, padding included.
    """

    def __init__(self, config: Any, passes: int) -> None:
        slots = [layer for _ in range(passes) for layer in DynamicCache(config=config).layers]
        super().__init__(layers=slots)
        self._stride = len(slots) // passes
        self._windows = [layer.sliding_window if layer.is_sliding else None for layer in slots]
        self.paths: list[Path] | None = None
        self.seen = 0

    def commit(self, tokens: int) -> None:
        """Count the tokens of a finished forward."""
        self.seen += tokens

    def view(self, number: int) -> "Cache | SlotView":
        """What a layer gets in the cache's place in its pass of this number, from 0."""
        return SlotView(self, number * self._stride) if number else self

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whatever the slot holds."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key positions that attention will meet, and the position of the first; as transformers' own layers count."""
        window = self._windows[layer_idx]
        if window is None:
            return self.seen + query_length, 0
        held = min(self.seen, window - 1)
        return held + query_length, self.seen - held

    @property
    def batch_size(self) -> int:
        """Rows of the batch, or -1 before the first forward."""
        return -1 if self.paths is None else len(self.paths)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise MethodError("rows of a routed cache cannot be moved, repeated or cut: no beams, no rollback")

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = _refuse


class SlotView:
    """The cache as a layer sees it in a later pass: the same but for the slot it writes to."""

    def __init__(self, cache: RoutedCache, offset: int) -> None:
        self._cache, self._offset = cache, offset

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values in the pass's own slot; see Cache."""
        kept: tuple[torch.Tensor, torch.Tensor] = self._cache.update(
            keys, values, layer_idx + self._offset, *args, **kwargs
        )
        return kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
