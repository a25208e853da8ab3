"""Key positions that attention meets, read off the cache of a forward, whatever kind of cache it is."""

from collections.abc import Collection
from typing import Any

from harness.contract.decoder import Decoder
from harness.measure.shape import window_of


class CacheReader:
    """Reads the caches of a model's forwards; make it when the method is attached, as methods move layers' slots."""

    def __init__(self, model: Decoder) -> None:
        attentions: list[Any] = [block.attention.modules[0] for block in model.anatomy.blocks]
        self._slots = [getattr(attention, "layer_idx", index) for index, attention in enumerate(attentions)]
        self._windows = [window_of(attention, model.config) for attention in attentions]
        self._is_sdpa = model.config._attn_implementation == "sdpa"

    def keys(self, cache: Any, queries: int, *, padded: bool) -> tuple[int, ...]:
        """Key positions that each layer's attention will meet in a forward that has not run yet, [layers].

        Args:
            cache: the forward's cache; None where it has none.
            queries: tokens of each row.
            padded: whether a row is shorter than the batch.
        """
        if cache is None:
            return (queries,) * len(self._slots)
        sizes = [cache.get_mask_sizes(queries, slot)[0] for slot in self._slots]
        if self._is_sdpa and queries > 1 and not padded and not cache.get_seq_length():
            # of a cache of fixed size that is empty, transformers' sdpa attention takes the part that was just written
            sizes = [
                queries if window is None or size < window else size
                for size, window in zip(sizes, self._windows, strict=True)
            ]
        return tuple(sizes)

    def unusual(self, keys: tuple[int, ...], seen: int, queries: int, attended: Collection[int]) -> tuple[int, ...]:
        """The key positions, [layers], or nothing where they are all positions so far, or the layer's window.

        Args:
            seen: positions in the cache before the forward.
            attended: layers whose attention ran; the others have no slot in the cache.
        """
        usual = tuple((seen if window is None or seen < window else window - 1) + queries for window in self._windows)
        if keys == usual:
            return ()
        met = tuple(size if layer in attended else usual[layer] for layer, size in enumerate(keys))
        return () if met == usual else met
