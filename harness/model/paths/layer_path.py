"""The layer-path engine: each row of a batch skips, runs or repeats whole layers, and only these layers run.

A path is fixed when the prompt is read, from its tokens alone, and kept with the cache, so that keys and values have
no gaps and cached decoding equals recomputation without a cache. The rows that run a layer are gathered, run and
scattered back. The engine replaces ``forward`` on the layers and knows no architecture beyond that; the ones on which
it has been compared with recomputation are listed (``harness.model.supported``), and all others are refused by name.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder, only
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.forwards import by_name, cache_argument, replace_forward, returns_tuple, rows_of, states_of, uploaded
from harness.model.paths.controller import Controller, Prompts
from harness.model.paths.routed_cache import LayerPath, RoutedCache
from harness.model.supported import attends_by_place, require_supported

_Pass = tuple[tuple[int, ...], torch.Tensor]
"""The rows that one pass of a layer runs on: as a tuple, and as an index tensor [rows of the pass]."""


def require_routable(model: Decoder) -> None:
    """Refuse a model whose layers cannot be skipped and repeated by row.

    Raises:
        UnsupportedModelError: an architecture or attention implementation that the engine was not compared on, or one
            that masks by a token's place in the row, where several answers share a row.
        MethodError: layers of the model have been removed or replaced.
    """
    require_supported(model, "layer paths")
    if attends_by_place(model):
        attention = type(model.anatomy.blocks[0].attention.modules[0]).__name__
        raise UnsupportedModelError(
            f"{type(model.module).__name__}: layer paths are not offered, because {attention} attends "
            "by the place of a token in its row, and answers that are tried share a row with their prompt"
        )
    if model.live != list(model.anatomy.blocks):
        raise MethodError("layer paths need all of the model's layers; stack the method that removes some after it")


@contextmanager
def routed(model: Decoder, controller: Controller) -> Iterator["Engine"]:
    """Let the controller choose a path for every row that the model runs inside the ``with`` block.

    Raises:
        UnsupportedModelError: see ``require_routable``.
        MethodError: the same, or another method directs the layers already.
    """
    require_routable(model)
    engine = Engine(model, controller)
    with ExitStack() as undo:
        for block in model.anatomy.blocks:
            replace_forward(undo, block.module, engine.layer_forward(block))
        for module in dict.fromkeys((model.module, model.anatomy.parent)):
            replace_forward(undo, module, engine.model_forward(module))
        replace_forward(undo, model.module, engine.prepare_cache, "_prepare_cache_for_generation")
        yield engine


@dataclass
class _Forward:
    """State of one forward of the whole model.

    Attributes:
        rows: the batch size.
        cache: keys and values, or None where nothing is decoded after this forward.
        prompts: the prompts that paths are chosen from; None in a decode step, whose paths are in the cache.
        remembered: for each row, the path that its prompt took before, if it was seen before.
        paths: for each row, the path as far as it is decided; all rows are decided equally far.
        gathered: layer arguments of some rows, by these rows and the identity of the whole arguments.
    """

    rows: int
    cache: RoutedCache | None
    prompts: Prompts | None
    remembered: list[LayerPath | None]
    paths: list[LayerPath]
    gathered: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]] = field(default_factory=dict)


class Engine:
    """Replaces the layers' forward. A prompt takes one path in every batch, padding and continuation.

    Attributes:
        last_paths: paths of the rows of the last finished forward.
    """

    def __init__(self, model: Decoder, controller: Controller) -> None:
        self._model, self._controller = model, controller
        self._running: _Forward | None = None
        self._remembered: dict[bytes, LayerPath] = {}  # by digest of the prompt
        self._passes: dict[tuple[tuple[int, ...], torch.device], list[_Pass]] = {}
        self.last_paths: list[LayerPath] = []

    def prepare_cache(self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
        """Give ``generate`` a routed cache where it would create a cache of its own."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self._new_cache()

    def model_forward(self, module: nn.Module) -> Callable[..., Any]:
        """The forward of the model, or of its stack of layers where that is called directly."""
        inner = module.forward
        signature = inspect.signature(inner)
        parameters = signature.parameters.values()
        rest = next((each.name for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD), "")

        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._running is not None:  # the model calls its stack of layers
                return inner(*args, **kwargs)
            arguments = signature.bind_partial(*args, **kwargs).arguments
            arguments |= arguments.pop(rest, {})
            self._running = running = self._begin(arguments)
            arguments |= {"past_key_values": running.cache, "use_cache": running.cache is not None}
            try:
                output = inner(**arguments)
            finally:
                self._running = None
            self._end(running, tokens=arguments["input_ids"].shape[1])
            return output

        return forward

    def layer_forward(self, block: Block) -> Callable[..., Any]:
        """The forward of one layer: hidden states [rows, tokens, width] to the same shape, as the layer gives it."""
        inner = block.module.forward
        cache_name, in_tuple = cache_argument(inner), returns_tuple(block.module)

        def forward(hidden: torch.Tensor, **arguments: Any) -> Any:
            running = self._running
            if running is None:
                raise MethodError("a layer ran outside the model while paths are attached")
            for number, (rows, index) in enumerate(self._passes_of(running, block.index, hidden)):
                if running.cache is not None:
                    arguments[cache_name] = running.cache.slots(number)
                if len(rows) == running.rows:  # bit for bit what the dense model computes
                    hidden = states_of(inner(hidden, **arguments))
                    continue
                with only(self._model, rows):
                    part = states_of(inner(hidden[index], **self._gathered(running, rows, index, arguments)))
                hidden = hidden.index_copy(0, index, part)  # part: [rows of the pass, tokens, width]
            return (hidden, None) if in_tuple else hidden

        return by_name(inner, forward)

    def _new_cache(self) -> RoutedCache:
        return RoutedCache(self._model.config, self._controller.passes)

    def _begin(self, arguments: dict[str, Any]) -> _Forward:
        """Resume the paths of the cache, or start a new batch of prompts."""
        ids, cache, context = arguments.get("input_ids"), arguments.get("past_key_values"), self._model.context
        if ids is None:
            raise MethodError("layer paths are chosen by prompt, so the model must be given input_ids")
        if isinstance(cache, Cache) and not isinstance(cache, RoutedCache):
            raise MethodError(
                f"a {type(cache).__name__} cannot hold rows that skip or repeat layers: pass no cache, or a RoutedCache"
            )
        rows = ids.shape[0]
        if cache is not None and cache.paths is not None:
            return _Forward(rows, cache, None, [None] * rows, cache.paths)
        if context is not None and context.decoding:
            raise MethodError("paths are kept with the cache, so decoding needs one: use_cache=False is not offered")
        use_cache = arguments.get("use_cache")
        if cache is None and (self._model.config.use_cache if use_cache is None else use_cache):
            # a scored text is never continued, so it needs no cache
            cache = None if context is not None and context.kind == "score" else self._new_cache()
        with self._model.adding("decision"):
            prompts = Prompts.of(ids, arguments.get("attention_mask"), context)
            remembered: list[LayerPath | None] = [None] * rows
            if self._controller.by_prompt:
                remembered = [self._remembered.get(digest) for digest in prompts.digests]
        return _Forward(rows, cache, prompts, remembered, [()] * rows)

    def _end(self, finished: _Forward, tokens: int) -> None:
        self.last_paths = finished.paths
        if finished.cache is not None:
            finished.cache.paths = finished.paths
            finished.cache.commit(tokens)
        if finished.prompts is not None and self._controller.by_prompt:
            self._remembered.update(zip(finished.prompts.digests, finished.paths, strict=True))

    def _passes_of(self, running: _Forward, layer: int, hidden: torch.Tensor) -> list[_Pass]:
        """The passes of a layer that some row runs, in order."""
        if running.prompts is not None and len(running.paths[0]) <= layer:
            # layers that another method took out are on no path, and nobody decided about them
            out = (0,) * (layer - len(running.paths[0]))
            running.paths[:] = [(*path, *out) for path in running.paths]
            # also where all paths are remembered: the cost of a decision is paid, and traced, for every row
            with self._model.adding("decision"):
                self._extend(running, running.prompts, self._controller.decide(layer, hidden, running.prompts))
        counts = tuple(path[layer] for path in running.paths)
        key = (counts, hidden.device)
        if key not in self._passes:
            self._passes[key] = [_pass(counts, number, hidden.device) for number in range(max(counts))]
        return self._passes[key]

    def _extend(self, running: _Forward, prompts: Prompts, decided: Sequence[LayerPath]) -> None:
        """Append what the controller decided for each row, unless the row's prompt took a path before."""
        if not self._controller.by_prompt:
            running.paths[:] = [(*path, *addition) for path, addition in zip(running.paths, decided, strict=True)]
            return
        end = len(running.paths[0]) + len(decided[0])
        # identical prompts must take the same path even if rounding makes the router disagree
        first: dict[bytes, LayerPath] = {}
        for row, (digest, before, addition) in enumerate(
            zip(prompts.digests, running.remembered, decided, strict=True)
        ):
            path = before[:end] if before is not None else (*running.paths[row], *addition)
            running.paths[row] = first.setdefault(digest, path)

    def _gathered(
        self, running: _Forward, rows: tuple[int, ...], index: torch.Tensor, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """The rows' part of a layer's arguments; layers that are called with the same arguments share it."""
        key = (rows, *(id(value) for value in arguments.values()))
        if key not in running.gathered:
            # keep the arguments alive: the key uses id(), which Python may reuse
            running.gathered[key] = (dict(arguments), rows_of(arguments, index, running.rows))
        return running.gathered[key][1]


def _pass(counts: tuple[int, ...], number: int, device: torch.device) -> _Pass:
    """The rows whose count exceeds the number of the pass, from 0."""
    rows = tuple(row for row, count in enumerate(counts) if count > number)
    return rows, uploaded(rows, device)
