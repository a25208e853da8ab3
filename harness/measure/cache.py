"""Key positions that attention meets, read off what the cache hands to it, whatever kind of cache it is."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from harness.contract.decoder import Decoder
from harness.measure.shape import window_of
from harness.model.forwards import CACHE_NAMES

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class CacheReader:
    """Watches what each layer's attention is given by its cache.

    The cache itself is handed on, with an ``update`` of its own for as long as the attention runs, so that a method or
    transformers finds the same object as without a trace.

    Attributes:
        met: key positions by layer, since it was cleared; a layer that ran without a cache is not in it.
    """

    def __init__(self, model: Decoder) -> None:
        self._attentions: list[Any] = [block.attention.modules[0] for block in model.anatomy.blocks]
        self._windows = [window_of(attention, model.config) for attention in self._attentions]
        self._is_sdpa = model.config._attn_implementation == "sdpa"
        self.met: dict[int, int] = {}

    def watch(self) -> list["RemovableHandle"]:
        """Hooks on all attentions; install them when the method is attached, to see the caches that it hands on."""
        return [
            handle
            for layer, attention in enumerate(self._attentions)
            for handle in (
                attention.register_forward_pre_hook(self._begin(layer), with_kwargs=True),
                attention.register_forward_hook(_end, with_kwargs=True, always_call=True),
            )
        ]

    def _begin(self, layer: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cache = _cache_of(kwargs)
            if cache is None or not hasattr(cache, "__dict__"):
                return
            update = cache.update

            def watched(*args: Any, **kwargs: Any) -> Any:
                updated = update(*args, **kwargs)
                self.met[layer] = updated[0].shape[-2]  # keys: [rows, heads, positions, head width]
                return updated

            watched.inner = vars(cache).get("update")  # type: ignore[attr-defined]
            vars(cache)["update"] = watched

        return begin

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


def seen_by(cache: Any, processed: int) -> int:
    """Positions that a cache has before a forward: of its longest layer, as a method may leave the first one out.

    Args:
        processed: tokens that earlier forwards of the batch ran; a first layer with as many has all there are.
    """
    if cache is None:
        return 0
    if int(cache.get_seq_length()) == processed:
        return processed
    lengths = [layer.get_seq_length() for layer in getattr(cache, "layers", ()) if hasattr(layer, "get_seq_length")]
    return max(map(int, (cache.get_seq_length(), *lengths)))


def _end(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache = _cache_of(kwargs)
    watched: Any = getattr(cache, "__dict__", {}).get("update")
    if not hasattr(watched, "inner"):  # the cache's own: another hook raised before this attention was watched
        return
    if watched.inner is None:
        del vars(cache)["update"]
    else:
        vars(cache)["update"] = watched.inner


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
