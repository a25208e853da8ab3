"""The attention engine: another function in the place of a layer's product of queries, keys and values.

transformers looks an attention function up by the name in the configuration, and the function that makes its mask
under the same name in a second registry. Both are registered here for the length of a ``with`` block, since without the
second causality and padding vanish without a word. The function sees queries and keys after rotary embedding and after
the cache was updated, with the key and value heads unexpanded. Layers that it is not for are computed as before.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any, Final

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.forwards import CACHE_NAMES, put
from harness.model.given import unusable
from harness.model.supported import require_supported

Attention = Callable[
    [int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], tuple[torch.Tensor, int] | None
]
"""``function(layer, q, k, v, mask, scale)``: an attention product, and the pairs of a query and a key it multiplied.

Args:
    layer: index of the dense layer.
    q: queries, [rows, heads, queries, head width].
    k, v: keys and values, [rows, kv heads, keys, head width]; the last key is the last query's own.
    mask: what queries may read, bool [rows, 1 or heads, queries, keys]; None: all keys up to their own.
    scale: what products of queries and keys are multiplied by.

Returns:
    The output, [rows, heads, queries, head width], and the pairs that were multiplied, over all rows and heads; None
    leaves this call to the model's own attention.
"""


_TOLD: Final = frozenset(
    (
        *("dropout", "sliding_window", "position_ids", "cache_position", "use_cache"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    )
)
"""Options of an attention that change nothing beside the mask, or nothing in evaluation."""


def require_attendable(model: Decoder, layers: Collection[int] | None = None) -> None:
    """Refuse a model whose attention does more than the function is told of.

    Args:
        layers: indices of the dense layers that the function is for; None: all.

    Raises:
        UnsupportedModelError: an architecture or attention implementation that the engine was not compared on, an
            attention that is not looked up, scores that are capped, or learned sinks.
    """
    require_supported(model, "attention functions")
    require_observable(model)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        raise UnsupportedModelError(
            f"{model.kind}: it caps attention scores (attn_logit_softcapping), of which an attention function is not "
            "told"
        )
    chosen = [block for block in model.anatomy.blocks if layers is None or block.index in layers]
    if any(getattr(block.attention.modules[0], "sinks", None) is not None for block in chosen):
        raise UnsupportedModelError(
            f"{model.kind}: its attention has learned sinks beside the keys, of which an attention function is not told"
        )


def require_observable(model: Decoder) -> None:
    """Refuse a model whose attention looks no function up by a name, and would not meet the one that is given.

    Raises:
        UnsupportedModelError: with the name of its attention.
    """
    kinds = {type(part): part for block in model.anatomy.blocks for part in block.attention.modules[:1]}
    for attention in kinds.values():
        forwards: list[Any] = [inspect.unwrap(type(part).forward) for part in attention.modules()]
        if not any("ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names for forward in forwards):
            raise UnsupportedModelError(
                f"{model.kind}: its {type(attention).__name__} multiplies queries and keys by itself, without "
                "transformers' registry of attention functions, so no other function can do it or look on"
            )


def full_layers(model: Decoder) -> tuple[int, ...]:
    """The layers in the model whose attention reads all keys, and not those of a sliding window alone."""
    kinds = [layer.is_sliding for layer in DynamicCache(config=model.config).layers]
    return tuple(block.index for block, slides in zip(model.live, kinds, strict=True) if not slides)


@contextmanager
def attending(
    model: Decoder, function: Attention, layers: Collection[int] | None = None, *, name: str
) -> Iterator[None]:
    """Compute the attention of some layers by ``function`` for all that runs inside the ``with`` block.

    The pairs that it returns are charged as the layer's attention. What it spends on choosing them it charges itself:
    ``model.charge("selection", layer=layer, macs=...)``.

    Args:
        layers: indices of dense layers; None: all.
        name: the method with its parameters, as messages and the key of a cost profile have it.

    Raises:
        UnsupportedModelError: see ``require_attendable``.
        MethodError: a layer is outside the model, or another method computes attention already; in a forward, where
            ``function`` returns what no attention can be, the cache has a fixed size, or ``output_attentions`` is
            asked for.
    """
    blocks = model.anatomy.blocks
    if not callable(function):
        raise MethodError(f"{name}: an attention function is called for each layer, and {function!r:.80} cannot be")
    if layers is not None and not _indices(layers):
        raise MethodError(f"{name}: layers are a list of the indices of dense layers, not {layers!r:.80}")
    require_attendable(model, layers)
    if layers is not None and not set(layers) <= set(range(len(blocks))):
        wrong = next(layer for layer in layers if not 0 <= layer < len(blocks))
        raise MethodError(f"{name}: there is no layer {wrong}; the model's layers are 0 to {len(blocks) - 1}")
    chosen = {
        block.attention.modules[0]: block.index for block in blocks if layers is None or block.index in set(layers)
    }
    engine = _Engine(model, function, name)

    def attend(inner: Callable[..., Any], module: nn.Module, *qkv: Any, **options: Any) -> Any:
        layer = chosen.get(module)
        output = None if layer is None else engine.attend(layer, *qkv, **options)
        return inner(module, *qkv, **options) if output is None else (output, None)

    with ExitStack() as undo:
        for attention in chosen:
            undo.callback(attention.register_forward_pre_hook(engine.refuse_static, with_kwargs=True).remove)
        undo.callback(model.module.register_forward_pre_hook(engine.refuse_weights, with_kwargs=True).remove)
        undo.enter_context(_registered(model, attend, name))
        yield


@contextmanager
def observing(model: Decoder, observe: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Tell of every layer's queries, [rows, heads, queries, head width], and keys, [rows, kv heads, keys, head width].

    They are those that attention reads, after rotary embedding; of one that reads them twice in a forward, as that of
    DiffLlama, they are told once. Attention itself is as it was.

    Raises:
        UnsupportedModelError: see ``require_observable``.
    """
    with watching(model, lambda layer, queries, keys, _: observe(layer, queries, keys)):
        yield


@contextmanager
def watching(
    model: Decoder, watch: Callable[[int, torch.Tensor, torch.Tensor, Mapping[str, Any]], None]
) -> Iterator[None]:
    """``observing``, and the options that attention is given beside them: ``scaling``, ``softcap``.

    Raises:
        UnsupportedModelError: see ``require_observable``.
    """
    require_observable(model)
    layers = {block.attention.modules[0]: block.index for block in model.anatomy.blocks}
    begun = set[nn.Module]()

    def attend(inner: Callable[..., Any], module: nn.Module, *qkv: torch.Tensor, **options: Any) -> Any:
        if module in begun:
            begun.remove(module)
            watch(layers[module], qkv[0], qkv[1], options)
        return inner(module, *qkv, **options)

    with ExitStack() as undo:
        for attention in layers:
            undo.callback(attention.register_forward_pre_hook(lambda module, _: begun.add(module)).remove)
        undo.enter_context(_registered(model, attend, "observed"))
        yield


def visible(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which keys a query may read, with nothing left implicit, bool [rows or 1, 1 or heads, queries, keys]."""
    if mask is not None:
        return mask
    last = torch.arange(keys - queries, keys, device=device)[:, None]  # each query's own key
    return (torch.arange(keys, device=device) <= last)[None, None]


class _Engine:
    """Calls the function, checks what it returns, and charges what it multiplied."""

    def __init__(self, model: Decoder, function: Attention, name: str) -> None:
        self._model, self._function, self._name = model, function, name

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> torch.Tensor | None:
        """The function's output as transformers takes it, [rows, queries, heads, head width], or None."""
        if unknown := [option for option, value in options.items() if value is not None and option not in _TOLD]:
            raise UnsupportedModelError(
                f"{self._model.kind}: its attention is given {', '.join(unknown)}, of which {self._name} is not told"
            )
        mask = attention_mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask == 0  # of what eager attention adds to scores
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        result = self._function(layer, query, key, value, mask, scale)
        if result is None:
            return None
        output, pairs = self._checked(layer, result, query, key, value)
        self._require_finite(layer, output, query, value, mask)
        rows, _, queries, width = query.shape
        self._model.charge("attention", layer=layer, macs=pairs * (width + value.shape[-1]), tokens=rows * queries)
        return output.transpose(1, 2).contiguous()

    def _checked(
        self, layer: int, result: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        rows, heads, queries, _ = query.shape
        where = f"{self._name}: the attention of layer {layer}"
        if not isinstance(result, tuple) or len(result) != 2:
            raise MethodError(
                f"{where} must return an output and the pairs that it multiplied, not {type(result).__name__}"
            )
        output, pairs = result
        if isinstance(output, torch.Tensor) and (kind := unusable(output, query.device)):
            raise MethodError(f"{where} must return a dense tensor where its queries are, not {kind}")
        shape = (rows, heads, queries, value.shape[-1])
        if not isinstance(output, torch.Tensor) or output.shape != shape:
            given = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise MethodError(
                f"{where} must return [rows, heads, queries, head width], here {list(shape)}, not {given}"
            )
        if output.dtype != query.dtype:
            raise MethodError(f"{where} must return {query.dtype}, as its queries are, not {output.dtype}")
        rectangle = rows * heads * queries * key.shape[2]
        if not isinstance(pairs, int) or isinstance(pairs, bool) or not 0 < pairs <= rectangle:
            raise MethodError(
                f"{where} says that it multiplied {pairs!r} pairs of a query and a key; over all rows and heads they "
                f"are a whole number from 1 to {rectangle}"
            )
        return output, pairs

    def _require_finite(
        self, layer: int, output: torch.Tensor, query: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """Refuse an output of each row's last query that is no number, where that query may read something."""
        finite = output[:, :, -1].isfinite().all(-1)  # [rows, heads]
        if mask is not None:
            finite = finite | ~mask[:, :, -1].any(-1)
        if not finite.all() and query[:, :, -1].isfinite().all() and value.isfinite().all():
            raise MethodError(
                f"{self._name}: the attention of layer {layer} gives numbers that are not finite, and what it was "
                "given is"
            )

    def refuse_weights(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward: an attention function returns no probabilities."""
        if kwargs.get("output_attentions") or getattr(self._model.config, "output_attentions", False):
            raise MethodError(
                f"{self._name}: its attention has no weights to show for every key; leave output_attentions out"
            )

    def refuse_static(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before an attention: its last key must be its last query's own."""
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        if any(isinstance(layer, StaticLayer) for layer in getattr(cache, "layers", ())):
            raise MethodError(
                f"{self._name}: a {type(cache).__name__} holds places of later tokens too, which an attention function "
                "would read; leave cache_implementation out"
            )


def _indices(layers: Any) -> bool:
    """Whether these can be indices of layers."""
    if not isinstance(layers, Collection) or isinstance(layers, str | bytes):
        return False
    return all(isinstance(layer, Integral) and not isinstance(layer, bool) for layer in layers)


@contextmanager
def _registered(model: Decoder, attend: Callable[..., Any], label: str) -> Iterator[None]:
    """Let all attentions of the decoder go through ``attend(inner, module, q, k, v, mask, **options)``."""
    before = model.config._attn_implementation
    name = f"{label} on {before}"  # a name of its own also where one function stands on another

    def function(module: nn.Module, *args: Any, **options: Any) -> Any:
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return attend(ALL_ATTENTION_FUNCTIONS.get_interface(before, eager), module, *args, **options)

    with ExitStack() as undo:
        for registry, entry in (
            (AttentionInterface, function),
            (AttentionMaskInterface, ALL_MASK_ATTENTION_FUNCTIONS[before]),
        ):
            registry.register(name, entry)
            undo.callback(registry._global_mapping.pop, name)
        attentions = [block.attention.modules[0] for block in model.anatomy.blocks]
        configs = [model.module.config, model.config, *(part.config for part in attentions if hasattr(part, "config"))]
        for config in {id(config): config for config in configs}.values():
            put(undo, config, "_attn_implementation_internal", name)
        yield
