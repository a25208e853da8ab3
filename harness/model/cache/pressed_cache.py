"""The cache of a model under a press: transformers' own dynamic cache, with layers whose entries may go."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from harness.model.cache.layers import FullLayer, SlidingLayer


class PressedCache(Cache):  # type: ignore[misc] # transformers has no type information here
    """Keys and values of which entries may be gone, in each layer other ones and another number.

    Attributes:
        width: tokens of each row's prompt, padding included; None before that is known.
        pressed: whether the prompt's entries have been chosen from.

    Args:
        remembers: each layer keeps a number for each of its entries.
        full: makes an empty layer of full attention.
    """

    def __init__(
        self,
        config: Any,
        width: int | None = None,
        *,
        remembers: bool = False,
        full: Callable[[], FullLayer] = FullLayer,
    ) -> None:
        kinds = DynamicCache(config=config).layers
        super().__init__(layers=[SlidingLayer(kind.sliding_window) if kind.is_sliding else full() for kind in kinds])
        for layer in self.layers:
            layer.remembers = remembers
        self.width = width
        self.pressed = False

    @property
    def thinned(self) -> bool:
        """Whether entries are gone from some layer."""
        return any(layer.positions is not None for layer in self.layers)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, some perhaps several times: all that is held of a row is in the layers."""
        super().batch_select_indices(indices)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Of the mask that transformers makes for all layers of a kind: key positions, and the first of them.

        Once entries are gone it is one over all tokens seen, from which each layer takes its own (``mask``).
        """
        if self.thinned:
            return self.get_seq_length(layer_idx) + query_length, 0
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
        return sizes

    def mask(self, layer_idx: int, mask: torch.Tensor | None, queries: int, groups: int) -> torch.Tensor | None:
        """A layer's own part of the mask over all tokens seen; see ``_Thinned.mask``."""
        layer = self.layers[layer_idx]
        own: torch.Tensor | None = layer.mask(mask, queries, groups)
        return own


def holdable(config: Any) -> str | None:
    """The kind of the first cache layer of a model that no ``PressedCache`` has; None where it has all of them."""
    kinds = (type(layer) for layer in DynamicCache(config=config).layers)
    return next((kind.__name__ for kind in kinds if kind not in (DynamicLayer, DynamicSlidingWindowLayer)), None)
