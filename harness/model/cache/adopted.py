"""The engine for presses of others: a hook on attention that puts other keys and values into the layer's cache.

The hook is called as kvpress calls its presses, which read some arguments that transformers no longer hands on. What it
leaves in the cache is taken as it is; new tokens continue where the text is, whatever the cache holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.core.errors import HarnessError, MethodError
from harness.model.cache.engine import CacheEngine, Call, Running, require_pressable
from harness.model.cache.pressed import When
from harness.model.cache.pressed_cache import PressedCache

Hook = Callable[[nn.Module, tuple[()], dict[str, Any], Any], Any]
"""``hook(attention, (), arguments, output)``, as of a forward hook; it changes the attention's layer of the cache."""


@contextmanager
def adopted(model: Decoder, hook: Hook, when: frozenset[When], *, name: str) -> Iterator[None]:
    """Let the hook change what the cache holds, for all that runs inside the ``with`` block.

    It draws from the same random numbers in every run.

    Raises:
        UnsupportedModelError: see ``require_pressable``.
        MethodError: another method directs the layers or holds the cache; in a forward, where the hook fails, where
            rows are of unequal length, or where a prompt is read in parts.
    """
    require_pressable(model)
    with _Adopting(model, hook, when, name).attached():
        yield


class _Adopting(CacheEngine):
    def __init__(self, model: Decoder, hook: Hook, when: frozenset[When], name: str) -> None:
        super().__init__(model, partial(PressedCache, model.config), when, name)
        self._hook = hook

    def change(self, running: Running, call: Call) -> None:
        """Call the hook on what is none of padding, and hold what it left."""
        layer, first = call.layer, self._first(running)
        if running.ends_prompt and layer.seen > running.tokens:
            raise MethodError(f"{self.name}: its presses act where a prompt is read in one forward, not in parts")
        every = layer.keys, layer.values
        gone = first if layer.positions is None else 0  # padding among the entries
        keys, values = layer.keys, layer.values = every[0][:, :, gone:], every[1][:, :, gone:]
        self._call(running, call, first)
        if layer.keys is keys and layer.values is values:
            layer.keys, layer.values = every  # nothing went; padding is hidden by the mask, as in dense
        else:
            layer.adopt()
        if getattr(call.attention, "masked_key_indices", None) is not None:
            raise MethodError(f"{self.name}: it hides entries head by head and holds them all, so nothing is saved")
        # its time counts by the call; its products are counted with attention's
        self.model.charge("press", layer=call.block.index, macs=0, tokens=call.states.shape[:2].numel())

    def _first(self, running: Running) -> int:
        """The column of the rows' first token, after padding on the left."""
        if running.present is None:
            return 0
        first = running.present.int().argmax(-1)  # [rows]
        if (first != first[0]).any() or not running.present[:, int(first[0]) :].all():
            raise MethodError(f"{self.name}: its presses know nothing of rows of unequal length: give --batch_size 1")
        return int(first[0])

    def _call(self, running: Running, call: Call, first: int) -> None:
        seen, tokens = call.layer.seen, running.tokens
        new = max(first - (seen - tokens), 0)  # padding among the new tokens
        arguments = {
            **call.arguments,
            "hidden_states": call.states[:, new:],
            "past_key_values": running.cache,
            "cache_position": torch.arange(seen - tokens + new, seen, device=call.states.device) - first,
        }
        if isinstance(rotary := call.arguments.get("position_embeddings"), tuple):
            arguments["position_embeddings"] = tuple(turns[:, new:] for turns in rotary)
        weights = call.output[1]  # of eager attention, [rows, heads, queries, keys]
        output = (call.output[0][:, new:], None if weights is None else weights[:, :, new:, first:])
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(call.block.index)
                self._hook(call.attention, (), arguments, output)
        except HarnessError:
            raise
        except Exception as error:  # of another's code
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MethodError(f"{self.name}: the press cannot be on this text or model: {reason}") from error
