"""Key positions that attention meets, read off what the cache hands to it, whatever kind of cache that is."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from harness.contract.decoder import Decoder
from harness.measure.shape import window_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_NAMES = ("past_key_values", "past_key_value", "layer_past")
"""What architectures call attention's argument for the cache."""


class CacheReader:
    """Watches what each layer's attention is given by its cache.

    Attributes:
        met: key positions by layer, since the last ``clear``; a layer that ran without a cache is not in it.
    """

    def __init__(self, model: Decoder) -> None:
        self._attentions: list[Any] = [block.attention.modules[0] for block in model.anatomy.blocks]
        self._windows = [window_of(attention, model.config) for attention in self._attentions]
        self._is_sdpa = model.config._attn_implementation == "sdpa"
        self.met: dict[int, int] = {}

    def watch(self) -> list["RemovableHandle"]:
        """Hooks on all attentions; install them when the method is attached, to see the caches that it hands on."""
        return [
            attention.register_forward_pre_hook(self._watched(layer), with_kwargs=True)
            for layer, attention in enumerate(self._attentions)
        ]

    def _watched(self, layer: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
        def hand_on(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            for name in _NAMES:
                if kwargs.get(name) is not None:
                    return args, {**kwargs, name: _Watched(kwargs[name], layer, self.met)}
            return None

        return hand_on

    def unusual(self, seen: int, queries: int, attended: Collection[int], *, padded: bool) -> tuple[int, ...]:
        """Key positions that attention met, [layers]; empty where they are all so far, or the layer's window.

        Args:
            seen: positions in the cache before the forward.
            queries: tokens of each row.
            attended: layers whose attention ran.
            padded: whether a row is shorter than the batch.
        """
        usual = tuple((seen if window is None or seen < window else window - 1) + queries for window in self._windows)
        met = tuple(
            self._read(self.met[layer], layer, seen, queries, padded=padded)
            if layer in attended and layer in self.met
            else size
            for layer, size in enumerate(usual)
        )
        return () if met == usual else met

    def _read(self, size: int, layer: int, seen: int, queries: int, *, padded: bool) -> int:
        """What attention reads of the keys that it was given."""
        window = self._windows[layer]
        if self._is_sdpa and queries > 1 and not seen and not padded and (window is None or size < window):
            # of a cache of fixed size that was empty, transformers' sdpa attention takes the part just written
            return min(size, queries)
        return size


class _Watched:
    """A cache as attention sees it, which notes how many positions it is given."""

    __slots__ = ("_cache", "_layer", "_met")

    def __init__(self, cache: Any, layer: int, met: dict[int, int]) -> None:
        object.__setattr__(self, "_cache", cache)
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_met", met)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """The cache's own; keys that it returns are [rows, heads, positions, head width]."""
        updated = self._cache.update(*args, **kwargs)
        self._met[self._layer] = updated[0].shape[-2]
        return updated

    @property  # type: ignore[misc] # attention may ask what kind of cache it has
    def __class__(self) -> Any:
        return type(self._cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cache, name, value)
