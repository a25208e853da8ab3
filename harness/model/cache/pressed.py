"""The cache engine: a press chooses which keys and values stay, after the prompt was read or after every step.

What goes is gone: the tensors get shorter, and attention reads what is left. Entries keep their positions and new
tokens continue where the text is. The engine's cache stands in wherever the model would make one of its own, in
``generate`` and in a plain forward; the press sees the tokens of each row and never its padding, so that a row keeps in
any batch what it keeps alone. A text that is scored in one forward without a cache meets no press.
"""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder, ForwardContext, only
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.attention import observing
from harness.model.cache.layers import FullLayer, SlidingLayer
from harness.model.cache.press import Entries, Press, checked
from harness.model.cache.pressed_cache import PressedCache, holdable
from harness.model.forwards import replace_forward
from harness.model.layouts import LAYER_INDEX_NAMES
from harness.model.supported import attends_by_place, require_supported

When = Literal["prefill", "decode"]

_ACROSS_HEADS: Final = ("diffllama",)
"""Architectures in which a head's keys meet the values of another head, of which a press may keep other entries."""

PREFILL: Final = frozenset[When]({"prefill"})


def require_pressable(model: Decoder) -> None:
    """Refuse a model whose keys and values the engine cannot hold.

    Raises:
        UnsupportedModelError: an architecture or attention implementation that the engine was not compared on, or
            layers that keep something other than keys and values.
    """
    require_supported(model, "presses on the cache")
    if attends_by_place(model):
        raise UnsupportedModelError(
            f"{model.kind}: presses on the cache are not "
            "offered, because its attention goes by the place of a key among those that are left"
        )
    if model.config.model_type in _ACROSS_HEADS:
        raise UnsupportedModelError(
            f"{model.kind}: presses on the cache are not offered, because a head's keys meet the values of another head"
        )
    if kind := holdable(model.config):
        raise UnsupportedModelError(
            f"{model.kind}: its cache has a {kind}, "
            "and a press chooses among keys and values of full and of sliding-window attention alone"
        )


@contextmanager
def pressed(
    model: Decoder,
    press: Press,
    when: Collection[When] = PREFILL,
    *,
    name: str,
    reads_queries: bool = False,
    remembers: bool = False,
) -> Iterator[None]:
    """Let the press choose what the cache holds, for all that runs inside the ``with`` block.

    Args:
        when: "prefill" is once, when the prompt has been read, in one forward or in parts; "decode" is after every
            forward after that.
        name: the method's, for messages.
        reads_queries: give the press the queries of the forward too (``Entries.queries``).
        remembers: keep a number for each entry that the press writes and finds again (``Entries.memory``).

    Raises:
        UnsupportedModelError: see ``require_pressable``; or queries are to be read that cannot be (``observing``).
        MethodError: another method directs the layers or holds the cache.
    """
    require_pressable(model)
    engine = _Engine(model, press, frozenset(when), name, remembers)
    with ExitStack() as undo:
        replace_forward(undo, model.module, engine.prepare_cache, "_prepare_cache_for_generation")
        whole = model.module
        undo.callback(whole.register_forward_pre_hook(engine.begin, with_kwargs=True).remove)
        undo.callback(whole.register_forward_hook(engine.end, always_call=True).remove)
        for block in model.anatomy.blocks:
            attention = block.attention.modules[0]
            undo.callback(attention.register_forward_pre_hook(engine.before, with_kwargs=True).remove)
            undo.callback(attention.register_forward_hook(engine.after(block), with_kwargs=True).remove)
        if reads_queries:
            undo.enter_context(observing(model, engine.observe))
        yield


@dataclass
class _Forward:
    """State of one forward of the whole model.

    Attributes:
        thinned: whether entries are gone from the cache as it begins, so that masks are over all tokens seen.
        present: which tokens seen, those of this forward included, are none of padding, bool [rows, tokens seen]; None
            where all of them are.
        presses: whether the press chooses after each attention.
        ends_prompt: whether the prompt has been read after it.
        queries: of the attention that ran last, where they are read.
    """

    cache: PressedCache
    tokens: int
    thinned: bool
    present: torch.Tensor | None
    presses: bool
    decoding: bool
    ends_prompt: bool
    queries: dict[int, torch.Tensor] = field(default_factory=dict)


class _Engine:
    def __init__(self, model: Decoder, press: Press, when: frozenset[str], name: str, remembers: bool) -> None:
        self._model, self._press, self._when, self._name = model, press, when, name
        self._new_cache = partial(PressedCache, model.config, remembers=remembers)
        self._names = list(inspect.signature(model.module.forward).parameters)
        self._running: _Forward | None = None

    def prepare_cache(self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
        """Give ``generate`` the engine's cache where it would create one of its own."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise MethodError(f"{self._name}: entries of a {kind!r} cache cannot go; leave cache_implementation out")
        mask = model_kwargs.get("attention_mask")  # transformers drops a mask without padding and notes its length
        width = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        model_kwargs["past_key_values"] = self._new_cache(width)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward: put the engine's cache in, and settle whether the press chooses."""
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        context, cache, use_cache = self._model.context, arguments.get("past_key_values"), arguments.get("use_cache")
        continued = use_cache or cache is not None  # a text that is scored in one forward is not
        if cache is None and (self._model.config.use_cache if use_cache is None else use_cache):
            arguments["past_key_values"] = cache = self._new_cache()
        if cache is None:
            if context is not None and context.decoding:
                raise MethodError(
                    f"{self._name}: it decodes from what the cache holds, so use_cache=False is not offered"
                )
            return None
        if not isinstance(cache, PressedCache):
            raise MethodError(f"{self._name}: entries of a {type(cache).__name__} cannot go: pass no cache")
        # a text that is scored after a context of no tokens leaves nothing to press
        cache.pressed |= context is not None and context.kind == "score" and context.read == 0
        self._running = self._forward(arguments, cache, context, continued=bool(continued))
        if self._running.decoding and "prefill" in self._when and cache.get_seq_length() and not cache.pressed:
            raise MethodError(
                f"{self._name}: decoding began before the prompt was read to the width that was announced"
            )
        return (), arguments

    def _forward(
        self, arguments: dict[str, Any], cache: PressedCache, context: ForwardContext | None, *, continued: bool
    ) -> _Forward:
        inputs = arguments.get("input_ids")
        rows, tokens = (arguments["inputs_embeds"] if inputs is None else inputs).shape[:2]
        seen = cache.get_seq_length()
        if cache.width is None:  # outside an evaluation, the first forward reads the prompt
            cache.width = seen + tokens
        if context is not None and context.speculating == "verify" and "decode" in self._when:
            raise MethodError(
                f"{self._name} chooses after every step, and guesses that are taken back would push out what stays in "
                "plain decoding: run it without a method that drafts"
            )
        if context is None:
            decoding, ends_prompt = seen >= cache.width, seen < cache.width <= seen + tokens
        else:
            decoding = context.decoding
            whole = context.kind == "score" or context.processed + tokens >= context.width
            ends_prompt = not decoding and not cache.pressed and continued and whole
        return _Forward(
            cache,
            tokens,
            cache.thinned,
            self._present(arguments.get("attention_mask"), rows, seen + tokens),
            presses=(decoding and "decode" in self._when) or (ends_prompt and "prefill" in self._when),
            decoding=decoding,
            ends_prompt=ends_prompt,
        )

    def _present(self, mask: torch.Tensor | None, rows: int, seen: int) -> torch.Tensor | None:
        if mask is None:
            return None
        if mask.shape != (rows, seen):
            raise MethodError(
                f"{self._name}: an attention mask says of each token seen whether it is padding, here "
                f"{[rows, seen]}, and has the shape {list(mask.shape)}"
            )
        present = mask.bool()
        return None if present.all() else present

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a forward, also one that failed."""
        running, self._running = self._running, None
        if running is not None:
            running.cache.pressed |= running.ends_prompt

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before an attention: its own part of the mask."""
        running = self._running
        if running is None or not running.thinned:
            return None
        groups = getattr(module, "num_key_value_groups", 1)
        mask = running.cache.mask(_slot(module), kwargs["attention_mask"], running.tokens, groups)
        return args, {**kwargs, "attention_mask": mask}

    def observe(self, layer: int, queries: torch.Tensor, keys: torch.Tensor) -> None:
        """Queries of a layer's attention, [rows, heads, tokens, head width], while it runs."""
        if self._running is not None and self._running.presses:
            self._running.queries[layer] = queries

    def after(self, block: Block) -> Callable[..., None]:
        """After an attention: let the press choose what its layer of the cache holds."""

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            running = self._running
            if running is not None and running.presses:
                states = args[0] if args else kwargs["hidden_states"]
                layer = running.cache.layers[_slot(module)]
                with self._model.adding("decision"):
                    self._choose(running, block.index, layer, states)

        return after

    def _choose(self, running: _Forward, index: int, layer: FullLayer | SlidingLayer, states: torch.Tensor) -> None:
        """Ask the press about the rows that hold equally much, in turn, and hold what it keeps."""
        columns = layer.stored().long()  # [rows, kv heads, entries]
        there, new = columns >= 0, running.present
        if new is not None:
            there &= new.gather(1, columns.clamp(min=0).flatten(1)).view_as(there)
            new = new[:, -running.tokens :]  # [rows, tokens]
        counts = there[:, 0].sum(-1).tolist()
        kept: list[tuple[list[int], torch.Tensor]] = []
        for group in _alike(counts, None if new is None else new.sum(-1).tolist()):
            stored = there[group].nonzero()[:, 2].view(len(group), there.shape[1], -1)  # [rows, kv heads, entries]
            entries = self._entries(running, index, layer, states, group, stored)
            chosen = checked(self._press(entries), entries, self._name)
            with only(self._model, tuple(group)):
                # its time counts by the call; products with queries are counted with attention's
                self._model.charge("press", layer=index, macs=0, tokens=entries.states.shape[:2].numel())
            if layer.memory is not None and entries.memory is not None:
                layer.memory[group] = layer.memory[group].scatter(-1, stored, entries.memory)
            kept.append((group, stored.gather(-1, chosen)))
        if all(indices.shape[-1] == counts[group[0]] for group, indices in kept):
            return  # nothing goes; padding is hidden by the mask, as in dense
        width = max(indices.shape[-1] for _, indices in kept)
        held = columns.new_full((*columns.shape[:2], width), -1)
        for group, indices in kept:
            held[group, :, width - indices.shape[-1] :] = indices
        layer.keep(held)

    def _entries(
        self,
        running: _Forward,
        index: int,
        layer: FullLayer | SlidingLayer,
        states: torch.Tensor,
        rows: list[int],
        stored: torch.Tensor,
    ) -> Entries:
        """What the press is told of some rows: ``stored`` are their entries, [rows, kv heads, entries]."""
        keys, values = layer.keys, layer.values
        if stored.shape != keys.shape[:3]:
            keys, values = (
                tensor[rows].gather(2, stored[..., None].expand(-1, -1, -1, tensor.shape[-1]))
                for tensor in (keys, values)
            )
        positions = layer.stored()[rows].long().gather(-1, stored)
        memory = None if layer.memory is None else layer.memory[rows].gather(-1, stored)
        states, queries = states[rows], running.queries.get(index)
        queries = None if queries is None else queries[rows]
        if running.present is not None:
            present = running.present[rows]
            tokens = present.cumsum(-1) - 1  # [rows, tokens seen]
            positions = tokens.gather(1, positions.flatten(1)).view_as(positions)
            row, token = present[:, -running.tokens :].nonzero().view(len(rows), -1, 2).unbind(-1)  # [rows, tokens]
            states = states[row, token]
            queries = None if queries is None else queries.transpose(1, 2)[row, token].transpose(1, 2)
        return Entries(index, tuple(rows), keys, values, positions, states, queries, memory, running.decoding)


def _alike(counts: list[int], tokens: list[int] | None) -> list[list[int]]:
    """Rows that hold equally many entries, and of equally many new tokens."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, count in enumerate(counts):
        groups.setdefault((count, tokens[row] if tokens else 0), []).append(row)
    return list(groups.values())


def _slot(attention: nn.Module) -> int:
    """The layer of the cache that an attention writes to now."""
    slot: int = next(getattr(attention, name) for name in LAYER_INDEX_NAMES if hasattr(attention, name))
    return slot
