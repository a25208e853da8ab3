"""Steps of fixed shape: one row whose keys, values, positions and tokens stay where they are in memory.

What a step of writing does on the host is then the same every time, so that it can be recorded once and played again
(``harness.measure.capture``). The cache has room for the whole text from the beginning and every step attends to all of
it, the part that is not written yet masked; sliding windows are masked too. Where the row is, and what it wrote last,
is counted on the device.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from harness.contract.decoder import Decoder
from harness.core.errors import CaptureError
from harness.model.forwards import uploaded
from harness.model.paths.routed_cache import LayerPath, RoutedCache
from harness.model.reading import new_cache


class StaticRow:
    """One row with a cache of fixed size, read and continued greedily.

    Attributes:
        token: the token that the last forward predicts, [1, 1].
        seen: tokens that have been read, [].

    Args:
        length: tokens that the cache has room for.
        ends: tokens that are never written.

    Raises:
        CaptureError: what is attached keeps a cache whose size changes from step to step.
    """

    def __init__(self, model: Decoder, length: int, ends: Sequence[int]) -> None:
        self._model, self._accepted = model, inspect.signature(model.module.forward).parameters
        self._cache = _fixed(new_cache(model, 1, length), length, model.device)
        self._ends = uploaded(torch.tensor(sorted(ends), dtype=torch.long), model.device)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self.seen = torch.zeros((), dtype=torch.long, device=model.device)

    @property
    def routed(self) -> bool:
        """Whether the row takes a path through the layers, which is chosen when its prompt is read."""
        return isinstance(self._cache, RoutedCache)

    @property
    def path(self) -> LayerPath | None:
        """The path that the row takes through the layers; None where it has none, or none yet."""
        paths = self._cache.paths if isinstance(self._cache, RoutedCache) else None
        return paths[0] if paths else None

    def reset(self) -> None:
        """Begin another text."""
        self.move(0)
        self.take(None)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """Read more tokens, [1, tokens]; the logits of the last ones, [1, keep, vocabulary]."""
        tokens = ids.shape[1]
        given = {
            "position_ids": (self.seen + torch.arange(tokens, device=ids.device))[None],  # [1, tokens]
            "logits_to_keep": keep,
        }
        arguments = {name: value for name, value in given.items() if name in self._accepted}
        with torch.autocast(self._model.device.type, self._model.autocast, enabled=self._model.autocast is not None):
            output = self._model.module(input_ids=ids, past_key_values=self._cache, use_cache=True, **arguments)
        self.seen.add_(tokens)
        logits: torch.Tensor = output.logits[:, -keep:]
        last = logits[:, -1].float().index_fill(-1, self._ends, -torch.inf)  # [1, vocabulary]
        self.token.copy_(last.argmax(-1, keepdim=True))
        return logits

    def step(self) -> None:
        """Read the token that was written last, and write the next."""
        self.read(self.token)

    def way_back(self) -> Callable[[], None]:
        """What brings the row back to where it is now.

        Keys and values that are left behind the row's end are masked until they are written over.
        """
        before, path = [place.clone() for place in self._places], self.path

        def back() -> None:
            for place, value in zip(self._places, before, strict=True):
                place.copy_(value)
            self.take(path)

        return back

    def move(self, seen: int) -> None:
        """Be behind so many tokens, whatever was read: what a step does there can be looked at."""
        for place in self._places[1:]:
            place.fill_(seen)

    def take(self, path: LayerPath | None) -> None:
        """Be on a path; None where it is still to be chosen."""
        if isinstance(self._cache, RoutedCache):
            self._cache.paths = None if path is None else [path]

    @property
    def _places(self) -> list[torch.Tensor]:
        """The token, and wherever tokens are counted."""
        counters = [self.seen, *(layer.cumulative_length for layer in self._cache.layers)]
        if isinstance(self._cache, RoutedCache):
            counters.append(self._cache.seen)
        return [self.token, *counters]


_PLAIN: Final[set[type]] = {
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
}
"""What a model keeps keys and values of all tokens in, when no method has another cache."""


def _fixed(cache: Any, length: int, device: torch.device) -> Any:
    """A cache of fixed size in place of an empty one.

    Raises:
        CaptureError: it is neither what the model has without methods, nor one of layer paths.
    """
    if isinstance(cache, RoutedCache):
        cache.fix(length, device)
        return cache
    kinds = {type(cache), *map(type, getattr(cache, "layers", ()))}
    if others := sorted(kind.__name__ for kind in kinds - _PLAIN):
        raise CaptureError(f"its cache ({others[0]}) is not of the keys and values of all tokens, so its size changes")
    return Cache(layers=[StaticLayer(length) for _ in cache.layers])
