"""Timed forwards of a model at chosen depths: what the cells of a cost profile time.

Layers are taken out of the loaded model and put back, so nothing is loaded twice. Inputs are random tokens, as dense
arithmetic takes as long for any. Whatever is not the forward itself (surgery, filling a cache) is outside the clock.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from harness.contract.decoder import Decoder, ForwardContext, Row
from harness.measure.clock import Clock, seconds
from harness.measure.profile import Work
from harness.measure.shape import window_of
from harness.model.forwards import by_name, cache_argument
from harness.model.layouts import layer_number
from harness.model.supported import require_supported
from harness.model.surgery import without_blocks, without_branches
from harness.model.tokens.fill import KeyValueFill


@dataclass(frozen=True, slots=True)
class Depths:
    """Which layers run, by index in the dense model.

    Attributes:
        blocks: layers in place; ``no_attention`` and ``no_mlp`` of them lack that branch.
    """

    blocks: tuple[int, ...]
    no_attention: tuple[int, ...] = ()
    no_mlp: tuple[int, ...] = ()


@dataclass
class Prober:
    """Times forwards of a model, one row at a time.

    Attributes:
        live: the layers that the model has as it stands, by index in the dense model.
        windows: sliding windows of the dense model's layers; None where attention is full, [layers].
    """

    model: Decoder
    clock: Clock
    seed: int = 0
    live: tuple[int, ...] = field(init=False)
    windows: tuple[int | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.live = tuple(block.index for block in self.model.live)
        blocks = self.model.anatomy.blocks
        self.windows = tuple(window_of(block.attention.modules[0], self.model.config) for block in blocks)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._filled: dict[int, DynamicCache] = {}  # by tokens
        self._keeps_rows = "logits_to_keep" in inspect.signature(self.model.module.forward).parameters

    def rows(self, tokens: int, wanted: int) -> int:
        """Rows that the head runs on: all of them in models without ``logits_to_keep``."""
        return wanted if self._keeps_rows else tokens

    @torch.inference_mode()
    def forward(self, work: Work, depths: Depths, times: int) -> list[float]:
        """Seconds of each of ``times`` forwards."""
        ids = self._tokens(work.n)
        cache = self._cache(work.c - work.n)
        with self.at(depths):
            return [self._timed(ids, cache, work.head_rows) for _ in range(times)]

    @torch.inference_mode()
    def steps(self, context: int, schedule: Sequence[Depths]) -> float:
        """Seconds of one decode step after another at this context, each at a depth of its own."""
        cache = self._cache(context - 1)
        total = 0.0
        for depths in schedule:
            ids = self._tokens(1)
            with self.at(depths):
                total += self._timed(ids, cache, 1)
        return total

    @torch.inference_mode()
    def module(self, part: nn.Module, width: int, tokens: int, times: int) -> list[float]:
        """Seconds of calls of a module alone on [1, tokens, width]."""
        module = self.model.module
        inputs = torch.randn(1, tokens, width, generator=self._generator).to(module.device, module.dtype)
        return [seconds(self.clock, lambda: part(inputs)) for _ in range(times)]

    @torch.inference_mode()
    def decision(self, part: nn.Module, width: int, times: int) -> list[float]:
        """Seconds of calls of a module on one token, whose choice the host then reads: a device is waited for."""
        module = self.model.module
        inputs = torch.randn(1, 1, width, generator=self._generator).to(module.device, module.dtype)  # [1, 1, width]
        return [seconds(self.clock, lambda: part(inputs).argmax(-1).tolist()) for _ in range(times)]

    @torch.inference_mode()
    def fill(self, context: int, tokens: int, times: int) -> list[float]:
        """Seconds of handing one layer's keys and values to a cache for tokens that do not run it.

        Raises:
            UnsupportedModelError: a model whose layers a token cannot skip.
        """
        require_supported(self.model, "tokens that skip layers")
        block = self.model.live[0]
        fill, slot = KeyValueFill(self.model, block), layer_number(block.attention.modules[0])
        cache, calls = self._cache(context), list[tuple[torch.Tensor, dict[str, Any]]]()
        hook = by_name(block.module.forward, lambda states, **arguments: calls.append((states, arguments)))
        watching = block.module.register_forward_pre_hook(
            lambda _, args, kwargs: hook(*args, **kwargs), with_kwargs=True
        )
        try:
            given = copy.deepcopy(cache)
            self.model.module(input_ids=self._tokens(tokens), past_key_values=given, use_cache=True)
        finally:
            watching.remove()
        ((states, arguments),) = calls  # states: [1, tokens, width]
        name = cache_argument(block.module.forward)
        del arguments[name]

        def filled(into: Any) -> None:
            into.update(*fill.by_head(fill(states, name, arguments)), slot)

        caches = [copy.deepcopy(cache) for _ in range(times)]
        return [seconds(self.clock, partial(filled, each)) for each in caches]

    @contextmanager
    def at(self, depths: Depths) -> Iterator[None]:
        """The model with these layers and branches alone."""
        with ExitStack() as stack:
            gone = set(self.live) - set(depths.blocks)
            if depths.no_attention or depths.no_mlp:
                stack.enter_context(without_branches(self.model, attention=depths.no_attention, mlp=depths.no_mlp))
            if gone:
                stack.enter_context(without_blocks(self.model, gone))
            yield

    def _timed(self, ids: torch.Tensor, cache: DynamicCache | None, rows: int) -> float:
        keywords: dict[str, Any] = {"use_cache": True}
        if cache is not None:
            keywords["past_key_values"] = copy.deepcopy(cache)
        if self._keeps_rows and rows < ids.shape[1]:
            keywords["logits_to_keep"] = rows
        seen = 0 if cache is None else cache.get_seq_length()
        with self._serving(seen or ids.shape[1], processed=seen):
            return seconds(self.clock, lambda: self.model.module(input_ids=ids, **keywords))

    def _serving(self, prompt: int, processed: int = 0) -> AbstractContextManager[ForwardContext]:
        """A generation after a prompt of so many tokens."""
        return self.model.serving([Row("", 0, (0,), prompt, prompt)], "generate", processed=processed)

    def _tokens(self, count: int) -> torch.Tensor:
        ids = torch.randint(0, self.model.config.vocab_size, (1, count), generator=self._generator)  # [1, tokens]
        return ids.to(self.model.device)

    def _cache(self, length: int) -> DynamicCache | None:
        """Keys and values of so many tokens at full depth; every call copies them."""
        if not length:
            return None
        if length not in self._filled:
            cache = DynamicCache(config=self.model.config)
            with self._serving(length):
                self.model.module(input_ids=self._tokens(length), past_key_values=cache, use_cache=True)
            self._filled[length] = cache
        return self._filled[length]
