"""The cache as it is: key positions that attention meets, and the bytes that each layer holds, whatever kind it is."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from harness.contract.decoder import Decoder
from harness.measure.shape import window_of
from harness.model.forwards import CACHE_NAMES
from harness.model.layouts import LAYER_INDEX_NAMES

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_USUAL: Final = frozenset(
    (
        *("keys", "values", "dtype", "device", "is_initialized", "sliding_window", "cumulative_length"),
        *("_sliding_window_tensor", "record_past", "max_batch_size", "num_heads", "batch_size", "max_cache_len"),
    )
)
"""Attributes of transformers' own slots: keys and values, and what counts or describes them."""
_PLAIN: Final = (int, float, str, type(None), torch.dtype, torch.device)


class CacheReader:
    """Watches what each layer's attention is given by its cache, and reads what caches hold.

    The cache itself is handed on, with an ``update`` of its own while the model runs, so that a method or transformers
    finds the same object as without a trace.

    Args:
        attentions: what runs each dense layer's attention now.
        changed: layers whose attention is not the dense model's, so that what it caches is read.

    Attributes:
        met: key positions by layer, since it was cleared; a layer that ran without a cache is not in it.
        written: bytes that a token adds to the cache in the changed layers, likewise.
    """

    def __init__(self, model: Decoder, attentions: Collection[nn.Module | None], changed: Collection[int] = ()) -> None:
        self._changed = frozenset(changed)
        self._attentions = list(attentions)
        self._windows = [window_of(block.attention.modules[0], model.config) for block in model.anatomy.blocks]
        self._slots = {_slot_of(block.attention.modules[0], block.index): block.index for block in model.live}
        self._model = model
        self._is_sdpa = model.config._attn_implementation == "sdpa"
        self._layer = 0
        self._watched: dict[int, tuple[Any, Any]] = {}  # caches by identity, with the ``update`` that they had
        self._caches: dict[int, weakref.ref[Any]] = {}  # of the batch, by identity
        self._handed: dict[int, int] = {}  # numbers that attention was handed, by layer
        self._shown: dict[int, weakref.ref[Tensor]] = {}  # in which tensor, which the cache keeps or lets go
        self.met: dict[int, int] = {}
        self.written: dict[int, float] = {}

    def watch(self) -> Iterator["RemovableHandle"]:
        """Hooks on all attentions; install them when the method is attached, to see the caches that it hands on."""
        for layer, attention in enumerate(self._attentions):
            if attention is not None:
                yield attention.register_forward_pre_hook(self._begin(layer), with_kwargs=True)

    def begin(self) -> None:
        """A forward begins."""
        for read in (self.met, self.written, self._handed, self._shown):
            read.clear()

    def end(self) -> None:
        """The forward is over: leave every cache as it was."""
        for cache, update in self._watched.values():
            if update is None:
                vars(cache).pop("update", None)
            else:
                vars(cache)["update"] = update
        self._watched.clear()

    def forget(self) -> None:
        """Another batch begins."""
        self._caches.clear()

    def held(self, cache: Any) -> tuple[int, ...] | None:
        """Bytes that the batch's caches hold, by dense layer, after a forward that used ``cache``; None without one, or
        where the model has no known layers."""
        if cache is None or not self._attentions:
            return None
        if id(cache) not in self._caches or self._caches[id(cache)]() is not cache:
            try:
                self._caches[id(cache)] = weakref.ref(cache)
            except TypeError:  # it allows none
                self._caches[id(cache)] = lambda: cache  # type: ignore[assignment]
        total = [0] * len(self._attentions)
        for alive in [alive for each in self._caches.values() if (alive := each()) is not None]:
            self._add(alive, total)
        return tuple(total)

    def hides(self, cache: Any, held: tuple[int, ...] | None, queries: int) -> bool:
        """Whether a layer's cache keeps numbers where they cannot be read, after a forward.

        It does where it holds less than a bit for each number that attention was handed of earlier forwards, and these
        are not those of another layer.

        Args:
            held: bytes that were read of it, by layer.
            queries: tokens of each row in the forward, which need no cache.
        """
        low = [
            layer
            for layer, numbers in self._handed.items()
            if held is not None and self.met.get(layer, 0) > queries and 8 * held[layer] < numbers
        ]
        known = {memory for memory, _ in _memories(cache, set())} if low else set[int]()
        shown = [self._shown[layer]() for layer in low]
        return any(type(keys) is not Tensor or keys.untyped_storage()._cdata not in known for keys in shown)

    def length(self, cache: Any) -> int | None:
        """Positions that a cache has now."""
        return None if cache is None else seen_by(cache, -1)

    def unusual(self, seen: int, queries: int, attended: Collection[int], *, padded: bool) -> tuple[int, ...]:
        """Key positions that attention met, [layers]; empty where they are all so far, or the layer's window.

        Args:
            seen: positions in the cache before the forward.
            queries: tokens of each row.
            attended: layers whose attention ran.
            padded: whether a row is shorter than the batch.
        """
        usual = [(seen if window is None or seen < window else window - 1) + queries for window in self._windows]
        sizes = list(usual)
        for layer, size in self.met.items():
            if size != usual[layer] and layer in attended:
                sizes[layer] = self._read(size, layer, seen, queries, padded=padded)
        return () if sizes == usual else tuple(sizes)

    def _begin(self, layer: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._layer = layer
            cache = kwargs.get("past_key_values")
            if cache is None:
                cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
            if cache is not None and id(cache) not in self._watched and hasattr(cache, "__dict__"):
                self._watch(cache)

        return begin

    def _watch(self, cache: Any) -> None:
        update = cache.update

        def watched(*args: Any, **kwargs: Any) -> Any:
            layer = self._layer
            updated = update(*args, **kwargs)
            slot = args[2] if len(args) > 2 else kwargs.get("layer_idx", -1)
            if self._slots.get(slot, layer) != layer:  # filled for a layer whose attention does not run
                return updated
            if layer in self._changed:
                keys, values = (*args, *kwargs.values())[:2]  # [rows, heads, tokens, head width]
                self.written[layer] = (keys.nbytes + values.nbytes) / (len(keys) * keys.shape[-2])
            keys, values = updated[0], updated[1]  # [rows, heads, positions, head width]
            self.met[layer] = keys.shape[-2]
            self._handed[layer] = keys.numel() + values.numel()
            self._shown[layer] = weakref.ref(keys)
            return updated

        self._watched[id(cache)] = cache, vars(cache).get("update")
        vars(cache)["update"] = watched

    def _read(self, size: int, layer: int, seen: int, queries: int, *, padded: bool) -> int:
        """What attention reads of the keys that it was given."""
        window = self._windows[layer]
        if self._is_sdpa and queries > 1 and not seen and not padded and (window is None or size < window):
            # of a cache of fixed size that was empty, transformers' sdpa attention takes the part just written
            return min(size, queries)
        return size

    def _add(self, cache: Any, total: list[int]) -> None:
        layers = getattr(cache, "layers", None)
        if not isinstance(layers, list | tuple):
            every = bytes_of(cache)
            for layer in range(len(total)):
                total[layer] += every // len(total)
            return
        count = self._model.config.num_hidden_layers
        for slot, layer in enumerate(layers):
            total[self._slots.get(slot, self._slots.get(slot % count, 0))] += bytes_of(layer)


def bytes_of(holder: Any) -> int:
    """Bytes of all memories that an object holds numbers in, directly or in what it holds, each once.

    Of a view, the whole memory that it keeps counts; a counter, of a single number, does not. A slot with a sliding
    window shows the end of what it was given last, and its window counts.
    """
    names = getattr(holder, "__dict__", {}).keys()
    keys, values = getattr(holder, "keys", None), getattr(holder, "values", None)
    if type(keys) is type(values) is Tensor:
        if type(holder) is DynamicLayer and names <= _USUAL:  # most are, and this is read in every forward
            first, second = keys.untyped_storage(), values.untyped_storage()
            if first._cdata != second._cdata:
                return first.nbytes() + second.nbytes()
        pair = {tensor.untyped_storage()._cdata: _kept(tensor, holder) for tensor in (keys, values)}
        if len(pair) == 2 and names <= _USUAL:
            return sum(pair.values())
        memories = dict(_memories(holder, set()))
        return sum((memories | pair if len(pair) == 2 else memories).values())
    return sum(dict(_memories(holder, set())).values())


def _kept(tensor: Tensor, slot: Any) -> int:
    """Bytes of a slot's keys or values: all of their memory, or as much as a sliding window keeps of it."""
    whole, window = tensor.untyped_storage().nbytes(), getattr(slot, "sliding_window", None)
    if window is None or tensor.ndim < 2:
        return whole
    positions = tensor.shape[-2]  # [rows, heads, positions, head width]
    kept = tensor.nbytes // positions * (window - 1) if positions else 0
    return min(whole, max(tensor.nbytes, kept))


def _memories(value: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """What identifies a memory that a value reaches, and its bytes."""
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):  # a subclass, of inner tensors and of constants
            for name in value.__tensor_flatten__()[0]:
                yield from _memories(getattr(value, name), seen)
        elif value.numel() > 1:
            storage = value.untyped_storage()
            yield storage._cdata, storage.nbytes()
    elif isinstance(value, np.ndarray):
        base = value if value.base is None else value.base
        yield id(base), getattr(base, "nbytes", value.nbytes)
    elif isinstance(value, list | tuple | set | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _memories(part, seen)
    elif not isinstance(value, nn.Module | type) and (len(seen) == 1 or not hasattr(value, "layers")):
        # a slot that knows its whole cache, or the model, does not hold these
        for part in getattr(value, "__dict__", {}).values():
            yield from _memories(part, seen)


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


def _slot_of(attention: nn.Module, position: int) -> int:
    """Where an attention's keys and values are in the cache."""
    return next((getattr(attention, name) for name in LAYER_INDEX_NAMES if hasattr(attention, name)), position)
