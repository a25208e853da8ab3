"""The engine of rounded caches: older keys and values in few bits, read as the numbers that the codes stand for.

The prompt is read in full precision. After it, and after every step, whole groups of tokens that have left the window
of the last ones are rounded. Sliding-window layers, which hold little, are as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.attention import full_layers
from harness.model.cache.engine import CacheEngine, Call, Running, require_pressable
from harness.model.cache.pressed_cache import PressedCache
from harness.model.cache.rounded_layer import RoundedLayer, Rounding


def require_roundable(model: Decoder, name: str) -> None:
    """Refuse a model that has no layer whose cache could be rounded.

    Raises:
        UnsupportedModelError: see ``require_pressable``; or every layer has a sliding window.
    """
    require_pressable(model)
    if not full_layers(model):
        raise UnsupportedModelError(
            f"{model.kind}: every layer has a sliding window, whose cache does not grow; {name} rounds that of layers "
            "that read all keys"
        )


@contextmanager
def rounded(model: Decoder, rounding: Rounding, *, name: str) -> Iterator[None]:
    """Round what the cache holds, for all that runs inside the ``with`` block.

    Raises:
        UnsupportedModelError: see ``require_roundable``.
        MethodError: another method directs the layers or holds the cache.
    """
    require_roundable(model, name)
    new_cache = partial(PressedCache, model.config, full=partial(RoundedLayer, rounding))
    with _Rounding(model, new_cache, frozenset({"prefill", "decode"}), name).attached():
        yield


class _Rounding(CacheEngine):
    def change(self, running: Running, call: Call) -> None:
        """Round what has left the window of a layer of full attention."""
        if isinstance(call.layer, RoundedLayer):
            call.layer.round(running.present)
            # its time counts by the call
            self.model.charge("press", layer=call.block.index, macs=0, tokens=call.states.shape[:2].numel())
