"""The layer-path engine: each row of a batch skips, runs or repeats whole layers, and really only these run.

A path is fixed when the prompt is read, from its tokens alone, and kept with the cache, so that keys and values have
no holes and cached decoding is what recomputation without a cache would give. Rows that run a layer are gathered,
run and put back. The engine replaces ``forward`` on the layers themselves and knows no architecture beyond that;
what it has been tested on is listed, and anything else is refused by name.
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
from harness.model.paths.controller import Controller, Prompts
from harness.model.paths.routed_cache import Path, RoutedCache

ARCHITECTURES = (
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text gemma3 phi3 gpt2 opt gpt_neox olmo2".split()  # noqa: SIM905
)
ATTENTION = ("sdpa", "eager")
_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")

_Pass = tuple[tuple[int, ...] | None, torch.Tensor | None]
"""One pass of a layer: the rows that run it and the same as an index tensor; None where all do."""


def require_supported(model: Decoder) -> None:
    """Refuse what the engine has not been tested on.

    Raises:
        UnsupportedModelError: another architecture or attention implementation.
        MethodError: the model's layers have been taken out or replaced.
    """
    kind, attention = model.module.config.model_type, model.config._attn_implementation
    if kind not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"layer paths are not offered for {type(model.module).__name__} (model_type {kind!r}): its layers have not "
            f"been tested against recomputation; these have: {', '.join(ARCHITECTURES)}"
        )
    if attention not in ATTENTION:
        raise UnsupportedModelError(
            f"layer paths on {kind} need attn_implementation sdpa or eager, not {attention}: "
            "rows gathered for a layer have not been tested with it"
        )
    live = getattr(model.anatomy.parent, model.anatomy.layers_name)
    if [block.module for block in model.anatomy.blocks] != list(live):
        raise MethodError("layer paths need all of the model's layers; stack the method that removes some after it")


@contextmanager
def routed(model: Decoder, controller: Controller) -> Iterator["Engine"]:
    """Let the controller choose paths for everything the model runs inside the ``with`` block.

    Raises:
        UnsupportedModelError: see ``require_supported``.
        MethodError: another method has hold of the layers.
    """
    require_supported(model)
    engine = Engine(model, controller)
    with ExitStack() as undo:
        for block in model.anatomy.blocks:
            replaced(undo, block.module, engine.layer(block))
        for module in dict.fromkeys((model.module, model.anatomy.parent)):
            replaced(undo, module, engine.whole(module))
        replaced(undo, model.module, engine.prepare_cache, "_prepare_cache_for_generation")
        yield engine


def replaced(undo: ExitStack, module: nn.Module, function: Callable[..., Any], name: str = "forward") -> None:
    """Put a function in the place of a method of one module, until ``undo`` ends.

    Raises:
        MethodError: something is there already.
    """
    if name in vars(module):
        raise MethodError("another method already decides what the model's layers run: attach one of them alone")
    setattr(module, name, function)
    undo.callback(delattr, module, name)


def by_name(inner: Callable[..., Any], function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A stand-in for a layer's forward that gets the hidden states first and everything else by name."""
    names = list(inspect.signature(inner).parameters)[1:]

    @wraps(inner)
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(hidden_states, **dict(zip(names, args, strict=False)), **kwargs)

    return forward


def rows_of(call: dict[str, Any], index: torch.Tensor, rows: int) -> dict[str, Any]:
    """What a layer is called with, for some rows of the batch: what is broadcast has one row, or none."""

    def part(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(part, value))
        has_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rows
        return value[index] if has_rows else value

    return {name: value if name == "cache_position" else part(value) for name, value in call.items()}


@dataclass
class _Forward:
    """One forward of the whole model.

    Attributes:
        paths: what is decided so far of each row's path.
        known: the paths of prompts that were seen before.
        frozen: the paths were decided in an earlier forward.
    """

    rows: int
    cache: RoutedCache | None
    prompts: Prompts | None
    known: list[Path | None]
    paths: list[Path]
    frozen: bool
    gathered: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]] = field(default_factory=dict)


class Engine:
    """What runs in the layers' place. One prompt has one path, whatever batch, padding or continuation it comes with.

    Attributes:
        last_paths: the paths of the last finished forward's rows.
    """

    def __init__(self, model: Decoder, controller: Controller) -> None:
        self._model, self._controller = model, controller
        self._running: _Forward | None = None
        self._remembered: dict[bytes, Path] = {}
        self._plans: dict[tuple[tuple[int, ...], torch.device], list[_Pass]] = {}
        self.last_paths: list[Path] = []

    def prepare_cache(self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
        """Give ``generate`` a routed cache where it would make one of its own."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self._new_cache()

    def whole(self, module: nn.Module) -> Callable[..., Any]:
        """The forward of the model, or of its stack of layers where that is called alone."""
        inner = module.forward
        signature = inspect.signature(inner)
        named = signature.parameters.values()
        rest = next((each.name for each in named if each.kind is inspect.Parameter.VAR_KEYWORD), "")

        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._running is not None:
                return inner(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            given |= given.pop(rest, {})
            self._running = serving = self._begin(given)
            try:
                output = inner(**{**given, "past_key_values": serving.cache, "use_cache": serving.cache is not None})
            finally:
                self._running = None
            self._end(serving, given["input_ids"].shape[1])
            return output

        return forward

    def layer(self, block: Block) -> Callable[..., torch.Tensor]:
        """The forward of one layer."""
        inner = block.module.forward
        cache_name = next(name for name in _CACHE_NAMES if name in inspect.signature(inner).parameters)

        def forward(hidden: torch.Tensor, **call: Any) -> torch.Tensor:
            serving = self._running
            if serving is None:
                raise MethodError("a layer ran outside the model while paths are attached")
            for number, (rows, index) in enumerate(self._passes(serving, block.index, hidden)):
                if serving.cache is not None:
                    call[cache_name] = serving.cache.view(number)
                if rows is None or index is None:
                    hidden = inner(hidden, **call)
                else:
                    with only(self._model, rows):
                        run = inner(hidden[index], **self._gathered(serving, rows, index, call))
                    hidden = hidden.index_copy(0, index, run)
            return hidden

        return by_name(inner, forward)

    def _new_cache(self) -> RoutedCache:
        return RoutedCache(self._model.config, self._controller.passes)

    def _begin(self, given: dict[str, Any]) -> _Forward:
        """Take up the paths of the cache, or start a new batch of prompts."""
        ids, cache, context = given.get("input_ids"), given.get("past_key_values"), self._model.context
        if ids is None:
            raise MethodError("layer paths are chosen by prompt, so the model must be given input_ids")
        if isinstance(cache, Cache) and not isinstance(cache, RoutedCache):
            raise MethodError(
                f"a {type(cache).__name__} cannot hold rows that skip or repeat layers: pass no cache, or a RoutedCache"
            )
        rows = ids.shape[0]
        if cache is not None and cache.paths is not None:
            return _Forward(rows, cache, None, [None] * rows, cache.paths, frozen=True)
        if context is not None and context.decoding:
            raise MethodError("paths are kept with the cache, so decoding needs one: use_cache=False is not offered")
        wanted = given.get("use_cache")
        if cache is None and (self._model.config.use_cache if wanted is None else wanted):
            # a scored text is never gone on with
            cache = None if context is not None and context.kind == "score" else self._new_cache()
        prompts = Prompts.of(ids, given.get("attention_mask"), context)
        known = [self._remembered.get(digest) for digest in prompts.digests]
        return _Forward(rows, cache, prompts, known, [()] * rows, frozen=False)

    def _end(self, serving: _Forward, tokens: int) -> None:
        self.last_paths = serving.paths
        if serving.cache is not None:
            serving.cache.paths = serving.paths
            serving.cache.commit(tokens)
        if serving.prompts is not None:
            self._remembered.update(zip(serving.prompts.digests, serving.paths, strict=True))

    def _passes(self, serving: _Forward, layer: int, hidden: torch.Tensor) -> list[_Pass]:
        """Who runs the layer in its first pass, and in its second."""
        if not serving.frozen and len(serving.paths[0]) <= layer:
            assert serving.prompts is not None  # paths that are not frozen are of prompts being read
            # also where all paths are known: what a decision costs is paid, and seen, for every row
            self._extend(serving, self._controller.decide(layer, hidden, serving.prompts))
        counts = tuple(path[layer] for path in serving.paths)
        key = (counts, hidden.device)
        if key not in self._plans:
            self._plans[key] = [_pass(counts, number, hidden.device) for number in range(max(counts))]
        return self._plans[key]

    def _extend(self, serving: _Forward, decided: Sequence[Path]) -> None:
        assert serving.prompts is not None
        done, end = len(serving.paths[0]), len(serving.paths[0]) + len(decided[0])
        first: dict[bytes, Path] = {}  # rounding must not part rows of one prompt
        rows = zip(serving.prompts.digests, serving.known, decided, strict=True)
        for row, (digest, known, more) in enumerate(rows):
            path = known[:end] if known is not None else (*serving.paths[row][:done], *more)
            serving.paths[row] = first.setdefault(digest, path)

    def _gathered(
        self, serving: _Forward, rows: tuple[int, ...], index: torch.Tensor, call: dict[str, Any]
    ) -> dict[str, Any]:
        """The rows' part of a layer's call; layers that are handed the same share it."""
        key = (rows, *(id(value) for value in call.values()))
        if key not in serving.gathered:  # kept with what it was made of, so that no other object takes over an id
            serving.gathered[key] = (dict(call), rows_of(call, index, serving.rows))
        return serving.gathered[key][1]


def _pass(counts: tuple[int, ...], number: int, device: torch.device) -> _Pass:
    rows = tuple(row for row, count in enumerate(counts) if count > number)
    return (None, None) if len(rows) == len(counts) else (rows, torch.tensor(rows, device=device))
