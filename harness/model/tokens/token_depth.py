"""The token engine: every token runs its own choice of layers, decided layer by layer, with an exact cache.

A token that does not run a layer keeps its state, and the layer's keys and values are projected from that state
(``harness.model.tokens.fill``). The result is that of one model: computing all layers for all tokens, and then
taking, token by token, the layer's output or its input.

- *One token a row* behind a cache, as in decoding: only the rows that run a layer are computed by it; for the others
  the keys and values alone. This saves work.
- *Several tokens a row*, as in scoring or reading a prompt: the layer is computed for all of them and its output is
  taken where a token runs it. This is a mask and saves nothing; it is counted as the full work that it is.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from harness.contract.anatomy import Block
from harness.contract.decoder import Auxiliary, Decoder
from harness.core.errors import MethodError
from harness.model.tokens.fill import CACHE_NAMES, KeyValueFill, require_fillable


@dataclass(frozen=True)
class Tokens:
    """The tokens of a forward.

    Attributes:
        predicting: shape [rows, tokens], bool: those whose output predicts a token that is written or scored. The
            others are prompt, which is only read, or padding.
        steps: shape [rows, tokens]: how many predictions of the row came before; 0 at the prompt's last token.
    """

    predicting: torch.Tensor
    steps: torch.Tensor


class TokenPolicy(ABC):
    """What a method adds: which tokens run which layer. It may look at a token's own past and present alone.

    Attributes:
        auxiliaries: the modules that it adds to the model and runs.
    """

    auxiliaries: tuple[Auxiliary, ...] = ()

    def begin(self, tokens: Tokens) -> None:  # noqa: B027 - a policy may need no more than the states
        """A forward begins."""

    @abstractmethod
    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """Which tokens run a layer.

        Args:
            layer: its index in the dense model.
            states: shape [rows, tokens, width], as they would enter it.

        Returns:
            bool of shape [rows, tokens]; None where all of them run it.
        """


@contextmanager
def token_depth(model: Decoder, policy: TokenPolicy) -> Iterator[None]:
    """Let the policy choose every token's layers, for the length of a ``with`` block.

    Generations run one after the other: the engine remembers where the prompt of the latest one ended.

    Raises:
        UnsupportedModelError: a model whose layers a token cannot skip.
        MethodError: another method directs the layers already; or, while it runs, the policy asks for a layer twice.
    """
    require_fillable(model)
    engine = _TokenEngine(model, policy)
    blocks = live_blocks(model)
    if any("forward" in vars(block.module) for block in blocks):
        raise MethodError("another method directs the layers of this model already; the two cannot be stacked")
    count = len(model.auxiliaries)
    with ExitStack() as undo:
        undo.callback(model.anatomy.parent.register_forward_pre_hook(engine.begin).remove)
        undo.callback(lambda: model.auxiliaries.__delitem__(slice(count, None)))
        model.auxiliaries += policy.auxiliaries
        for block in blocks:
            layer = _Layer(model, block)
            model.auxiliaries.append(Auxiliary(layer.fill, "fill", block.index))
            block.module.forward = partial(engine.run, layer)
            undo.callback(delattr, block.module, "forward")
        yield


def live_blocks(model: Decoder) -> list[Block]:
    """The layers that are in the model now; a method below may have taken some out."""
    layers = list(getattr(model.anatomy.parent, model.anatomy.layers_name))
    return [block for block in model.anatomy.blocks if block.module in layers]


class _Layer:
    """A decoder layer, its fill, and where it takes its arguments."""

    def __init__(self, model: Decoder, block: Block) -> None:
        self.index = block.index
        self.attention: Any = block.attention.modules[0]
        self.run = block.module.forward
        self.fill = KeyValueFill(model, block)
        self._names = list(inspect.signature(self.run).parameters)
        self.cache_name = next(name for name in CACHE_NAMES if name in self._names)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """The states, the cache and the other arguments of a call; some models give them by position."""
        options = {**dict(zip(self._names, args, strict=False)), **kwargs}
        states: torch.Tensor = options.pop("hidden_states")
        return states, options.pop(self.cache_name, None), options

    def filled(self, states: torch.Tensor, options: dict[str, Any]) -> list[torch.Tensor]:
        """Keys and values of states that do not run the layer, each of shape [rows, heads, tokens, head width]."""
        projected = self.fill(states, self.cache_name, options)
        return [part.unflatten(-1, (-1, self.fill.head_width)).transpose(1, 2) for part in projected]


class _TokenEngine:
    """Stands in for the forward of every layer."""

    def __init__(self, model: Decoder, policy: TokenPolicy) -> None:
        self._model = model
        self._policy = policy
        self._begun = self._gathers = False
        self._prompt = 0  # positions of the latest prompt, padding included
        self._split: tuple[torch.Tensor, list[int], list[int]] | None = None

    def begin(self, *_: Any) -> None:
        """A forward of the whole model begins; its first layer will tell more."""
        self._begun, self._split = False, None

    def run(self, layer: _Layer, *args: Any, **kwargs: Any) -> Any:
        """A layer's forward."""
        states, cache, options = layer.arguments(args, kwargs)
        if not self._begun:
            self._policy.begin(self._tokens(states, cache))
            self._begun = True
        runs = self._policy.runs(layer.index, states)
        whole = {**options, layer.cache_name: cache}
        if runs is None:
            return layer.run(states, **whole)
        if runs.dtype is not torch.bool:
            raise MethodError(
                f"layer {layer.index}: a token runs a layer once or not at all, so its policy gives bool, not "
                f"{runs.dtype}; a layer that runs twice needs a path chosen for the whole sequence"
            )
        if not self._gathers:
            return _first_as(lambda output: torch.where(runs[..., None], output, states), layer.run(states, **whole))
        running, skipping = self._rows(runs)
        if not skipping:
            return layer.run(states, **whole)
        return self._run_some(layer, states, cache, options, running, skipping)

    def _run_some(
        self,
        layer: _Layer,
        states: torch.Tensor,
        cache: Any,
        options: dict[str, Any],
        running: list[int],
        skipping: list[int],
    ) -> Any:
        """Run a layer on some rows of one token each; give it the keys and values of the others."""
        rows = len(states)
        with self._only(skipping, rows):
            skipped = _of_rows(states, skipping, rows), _of_rows(options, skipping, rows)
            filled = layer.filled(*skipped)
        if not running:
            cache.update(*filled, layer.attention.layer_idx)
            return states
        merging = _Merging(cache, running, skipping, filled)
        with self._only(running, rows):
            part = {**_of_rows(options, running, rows), layer.cache_name: merging}
            output = layer.run(_of_rows(states, running, rows), **part)
        index = torch.tensor(running, device=states.device)
        return _first_as(lambda new: states.index_copy(0, index, new), output)

    def _only(self, rows: list[int], of: int) -> AbstractContextManager[None]:
        context = self._model.context
        return nullcontext() if context is None or len(rows) == of else context.only(tuple(rows))

    def _rows(self, runs: torch.Tensor) -> tuple[list[int], list[int]]:
        """Rows that run and rows that skip; asked once for a policy's answer that it gives again."""
        if self._split is None or self._split[0] is not runs:
            flags = runs[:, 0].tolist()
            running = [row for row, flag in enumerate(flags) if flag]
            self._split = runs, running, [row for row, flag in enumerate(flags) if not flag]
        return self._split[1:]

    def _tokens(self, states: torch.Tensor, cache: Any) -> Tokens:
        """What the forward's tokens are for, by the context where there is one.

        Without one the last token of each row predicts: that of a prompt, or the one that was written last.
        """
        rows, queries = states.shape[:2]
        seen = 0 if cache is None else cache.get_seq_length()
        self._gathers = queries == 1 and seen > 0
        context = self._model.context
        places = torch.arange(queries).expand(rows, -1)
        if context is not None and context.kind == "score":
            ends = torch.tensor([row.length for row in context.rows])[:, None]
            first = torch.tensor([row.prompt_length for row in context.rows])[:, None] - 1
            if context.padding == "left":
                first, ends = first + queries - ends, torch.tensor(queries)
            steps, within = places - first, places < ends
        else:
            written = self._gathers if context is None else context.decoding
            if not written:
                self._prompt = seen + queries
            steps, within = places + seen - (self._prompt - 1), torch.tensor(True)
        predicting = (steps >= 0) & within
        return Tokens(predicting.to(states.device), steps.clamp(min=0).to(states.device))


class _Merging:
    """In the cache's place for a layer that some rows run: it takes what the others were filled with as well."""

    def __init__(self, cache: Any, running: list[int], skipping: list[int], filled: list[torch.Tensor]) -> None:
        self._cache = cache
        self._running, self._skipping, self._filled = running, skipping, filled

    def update(self, keys: torch.Tensor, values: torch.Tensor, *place: Any, **options: Any) -> list[torch.Tensor]:
        """Store every row's keys and values, and return those of the rows that run."""
        whole = []
        for own, filled in zip((keys, values), self._filled, strict=True):
            merged = own.new_empty(len(own) + len(filled), *own.shape[1:])
            merged[self._running], merged[self._skipping] = own, filled
            whole.append(merged)
        return [held[self._running] for held in self._cache.update(*whole, *place, **options)]


def _of_rows(value: Any, rows: list[int], of: int) -> Any:
    """What a layer is given, for some of its rows: tensors of one entry a row, also inside tuples and dictionaries."""
    if len(rows) == of:
        return value
    if isinstance(value, torch.Tensor):
        return value[rows] if value.ndim and len(value) == of else value
    if isinstance(value, tuple):
        return tuple(_of_rows(part, rows, of) for part in value)
    if isinstance(value, dict):
        return {name: _of_rows(part, rows, of) for name, part in value.items()}
    return value


def _first_as(change: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """A layer's output with its states changed; some layers return a tuple that starts with them."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
