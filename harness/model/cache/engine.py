"""A cache of the harness's own wherever the model would make one, and something done to its layers after attention.

In ``generate`` and in a plain forward alike. Each layer has its own part of the mask, as it may hold other entries than
the first one, by which transformers sizes the masks of all.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder, ForwardContext
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.cache.pressed_cache import PressedCache, holdable
from harness.model.forwards import replace_forward
from harness.model.layouts import LAYER_INDEX_NAMES
from harness.model.supported import attends_by_place, require_supported

_ACROSS_HEADS: Final = ("diffllama",)
"""Architectures in which a head's keys meet the values of another head, of which a press may keep other entries."""


def require_pressable(model: Decoder) -> None:
    """Refuse a model whose keys and values an engine cannot hold.

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


@dataclass
class Running:
    """State of one forward of the whole model.

    Attributes:
        tokens: of each row, padding included.
        thinned: whether a layer holds something other than an entry for each token as the forward begins, so that masks
            are over all tokens seen.
        present: which tokens seen, those of this forward included, are none of padding, bool [rows, tokens seen]; None
            where all of them are.
        changes: whether the engine changes layers after their attention.
        ends_prompt: whether the prompt has been read after it.
    """

    cache: PressedCache
    tokens: int
    thinned: bool
    present: torch.Tensor | None
    changes: bool
    decoding: bool
    ends_prompt: bool


@dataclass(frozen=True)
class Call:
    """An attention that has run.

    Attributes:
        layer: of the cache, to which it wrote.
        states: hidden states that went into it, [rows, tokens, width].
        arguments: all that it was given by name.
        output: what it returned.
    """

    block: Block
    layer: Any
    states: torch.Tensor
    arguments: dict[str, Any]
    output: Any

    @property
    def attention(self) -> nn.Module:
        """The module."""
        module: nn.Module = self.block.attention.modules[0]
        return module


class CacheEngine(ABC):
    """Gives a model the engine's cache, and changes its layers as a subclass says.

    Args:
        new_cache: makes an empty cache for prompts of so many tokens, padding included; None where that is not known.
        when: "prefill" is once, when the prompt has been read, in one forward or in parts; "decode" is after every
            forward after that.
        name: the method's, for messages.
    """

    def __init__(
        self, model: Decoder, new_cache: Callable[[int | None], PressedCache], when: frozenset[str], name: str
    ) -> None:
        self.model, self.when, self.name = model, when, name
        self._new_cache = new_cache
        self._names = list(inspect.signature(model.module.forward).parameters)
        self.running: Running | None = None

    @abstractmethod
    def change(self, running: Running, call: Call) -> None:
        """Change what a layer holds, after its attention."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Run the model with this cache inside the ``with`` block.

        Raises:
            MethodError: another method directs the layers or holds the cache.
        """
        with ExitStack() as undo:
            replace_forward(undo, self.model.module, self._prepare_cache, "_prepare_cache_for_generation")
            whole = self.model.module
            undo.callback(whole.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            undo.callback(whole.register_forward_hook(self._end, always_call=True).remove)
            for block in self.model.anatomy.blocks:
                attention = block.attention.modules[0]
                undo.callback(attention.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                undo.callback(attention.register_forward_hook(self._after(block), with_kwargs=True).remove)
            yield

    def _prepare_cache(self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
        """Give ``generate`` the engine's cache where it would create one of its own."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return
        if (generation_config.num_beams or 1) > 1:
            raise MethodError(
                f"{self.name}: beam search tries several continuations, and what the cache holds is chosen for one: "
                "give num_beams=1"
            )
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise MethodError(f"{self.name}: entries of a {kind!r} cache cannot go; leave cache_implementation out")
        mask = model_kwargs.get("attention_mask")  # transformers drops a mask without padding and notes its length
        width = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        model_kwargs["past_key_values"] = self._new_cache(width)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward: put the engine's cache in, and settle whether its layers change."""
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        context, cache, use_cache = self.model.context, arguments.get("past_key_values"), arguments.get("use_cache")
        continued = use_cache or cache is not None  # a text that is scored in one forward is not
        if cache is None and (self.model.config.use_cache if use_cache is None else use_cache):
            arguments["past_key_values"] = cache = self._new_cache(None)
        if cache is None:
            if context is not None and context.decoding:
                raise MethodError(
                    f"{self.name}: it decodes from what the cache holds, so use_cache=False is not offered"
                )
            return None
        if not isinstance(cache, PressedCache):
            raise MethodError(f"{self.name}: entries of a {type(cache).__name__} cannot go: pass no cache")
        # a text that is scored after a context of no tokens leaves nothing to press
        cache.pressed |= context is not None and context.kind == "score" and context.read == 0
        self.running = self._forward(arguments, cache, context, continued=bool(continued))
        if self.running.decoding and "prefill" in self.when and cache.get_seq_length() and not cache.pressed:
            raise MethodError(f"{self.name}: decoding began before the prompt was read to the width that was announced")
        return (), arguments

    def _forward(
        self, arguments: dict[str, Any], cache: PressedCache, context: ForwardContext | None, *, continued: bool
    ) -> Running:
        inputs = arguments.get("input_ids")
        rows, tokens = (arguments["inputs_embeds"] if inputs is None else inputs).shape[:2]
        seen, most = cache.get_seq_length(), getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and seen + tokens > most:
            raise MethodError(
                f"{self.name}: a text of {seen + tokens} tokens, padding included, has more than the model's {most} "
                f"positions, which entries keep: give --model_args max_length={most} or less"
            )
        if cache.width is None:  # outside an evaluation, the first forward reads the prompt
            cache.width = seen + tokens
        if context is not None and context.speculating == "verify" and "decode" in self.when:
            raise MethodError(
                f"{self.name} chooses after every step, and guesses that are taken back would push out what stays in "
                "plain decoding: run it without a method that drafts"
            )
        if context is None:
            decoding, ends_prompt = seen >= cache.width, seen < cache.width <= seen + tokens
        else:
            decoding = context.decoding
            whole = context.kind == "score" or context.processed + tokens >= context.width
            ends_prompt = not decoding and not cache.pressed and continued and whole
        return Running(
            cache,
            tokens,
            cache.thinned,
            self._present(arguments.get("attention_mask"), rows, seen + tokens),
            changes=(decoding and "decode" in self.when) or (ends_prompt and "prefill" in self.when),
            decoding=decoding,
            ends_prompt=ends_prompt,
        )

    def _present(self, mask: torch.Tensor | None, rows: int, seen: int) -> torch.Tensor | None:
        if mask is None:
            return None
        if mask.shape != (rows, seen):
            raise MethodError(
                f"{self.name}: an attention mask says of each token seen whether it is padding, here "
                f"{[rows, seen]}, and has the shape {list(mask.shape)}"
            )
        present = mask.bool()
        return None if present.all() else present

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a forward, also one that failed."""
        running, self.running = self.running, None
        if running is not None:
            running.cache.pressed |= running.ends_prompt

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before an attention: its own part of the mask."""
        running = self.running
        if running is None or not running.thinned:
            return None
        groups = getattr(module, "num_key_value_groups", 1)
        mask = running.cache.mask(_slot(module), kwargs["attention_mask"], running.tokens, groups)
        return args, {**kwargs, "attention_mask": mask}

    def _after(self, block: Block) -> Callable[..., None]:
        """After an attention: change what its layer of the cache holds."""

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            running = self.running
            if running is not None and running.changes:
                states = args[0] if args else kwargs["hidden_states"]
                with self.model.adding("decision"):
                    self.change(running, Call(block, running.cache.layers[_slot(module)], states, kwargs, output))

        return after


def _slot(attention: nn.Module) -> int:
    """The layer of the cache that an attention writes to now."""
    slot: int = next(getattr(attention, name) for name in LAYER_INDEX_NAMES if hasattr(attention, name))
    return slot
