"""The token engine: every token runs its own choice of layers, decided layer by layer, with an exact cache.

A token that does not run a layer keeps its state, and the layer's keys and values are projected from that state
(``harness.model.tokens.fill``). The result is that of computing all layers for all tokens and then taking, token by
token, the layer's output or its input.

- *One token per row* with a cache, as in decoding: a layer runs only on the rows that run it; for the others it
  projects keys and values alone. This saves work.
- *Several tokens per row*, as in scoring or prefill: the layer runs on all of them and its output is taken where a
  token runs it. This is a mask and saves nothing; it is counted as the full work that it is.

A policy may say of a layer that no token of a row runs it once an earlier one has skipped it (``TokenPolicy.fills``).
Then nothing ever attends to what the skipping tokens would have left there: neither is it projected nor kept, and a
layer that no token of a forward runs is left out of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from transformers import DynamicCache

from harness.contract.anatomy import Block
from harness.contract.decoder import Auxiliary, Decoder, only
from harness.core.errors import MethodError
from harness.model.forwards import by_name, cache_argument, replace_forward, returns_tuple, rows_of, uploaded
from harness.model.layouts import layer_number
from harness.model.supported import require_supported
from harness.model.tokens.fill import KeyValueFill


@dataclass(frozen=True)
class Tokens:
    """The tokens of a forward. What they are for is known before it runs, so it is on the CPU, wherever the model is.

    Attributes:
        predicting: [rows, tokens], bool: those whose output predicts a token that is generated or scored. The others
            are prompt, which is only read, or padding.
        steps: [rows, tokens]: how many predictions of the row came before; 0 at the prompt's last token.
        positions: [rows, tokens]: how many tokens of the row came before, padding left out; 0 at its padding.
    """

    predicting: torch.Tensor
    steps: torch.Tensor
    positions: torch.Tensor


class TokenPolicy(ABC):
    """What a method adds: which tokens run which layer. It may look at a token's own past and present alone.

    Attributes:
        auxiliaries: the modules that it adds to the model and runs.
    """

    auxiliaries: tuple[Auxiliary, ...] = ()

    def fills(self, layer: int) -> bool:
        """Whether a token that skips the layer leaves it keys and values, for later tokens of its row to attend to.

        False is a promise: of every row's tokens, those that run the layer come before those that skip it. Whoever
        breaks it is refused when it happens.

        Args:
            layer: index of the layer in the dense model.
        """
        return True

    def begin(self, tokens: Tokens) -> None:  # noqa: B027 - a policy may need no more than the states
        """A forward begins."""

    @abstractmethod
    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """Which tokens run a layer.

        Args:
            layer: index of the layer in the dense model.
            states: [rows, tokens, width], as they would enter it.

        Returns:
            bool [rows, tokens]; None where all of them run it. On the CPU where it is known there: what is on another
            device is waited for in every layer of a decode step.
        """


@contextmanager
def token_depth(model: Decoder, policy: TokenPolicy) -> Iterator[None]:
    """Let the policy choose every token's layers for the duration of a ``with`` block.

    Generations run one after the other: the engine remembers where the prompt of the latest one ended.

    Raises:
        UnsupportedModelError: a model whose layers a token cannot skip.
        MethodError: another method directs the layers already; or, while it runs, the policy asks for a layer twice, or
            for one that an earlier token of the row has skipped without filling it.
    """
    require_supported(model, "tokens that skip layers")
    engine = _TokenEngine(model, policy)
    measuring = _measuring_slots(model)
    fills = {
        block.index: KeyValueFill(model, block)
        for block in model.live
        if policy.fills(block.index) or layer_number(block.attention.modules[0]) in measuring
    }
    added = [*policy.auxiliaries, *(Auxiliary(fill, "fill", index) for index, fill in fills.items())]
    with ExitStack() as undo:
        undo.enter_context(model.assisted(added))
        undo.callback(model.anatomy.parent.register_forward_pre_hook(engine.begin, with_kwargs=True).remove)
        for block in model.live:
            layer = _Layer(block, fills.get(block.index))
            replace_forward(undo, block.module, by_name(layer.forward, partial(engine.run, layer)))
        yield


def _measuring_slots(model: Decoder) -> set[int]:
    """Cache slots that transformers reads positions and the sizes of masks off: the first of each kind of attention."""
    windows = [getattr(slot, "sliding_window", None) for slot in DynamicCache(config=model.config).layers]
    return {windows.index(window) for window in windows}


class _Layer:
    """A decoder layer: its own forward, its fill, and its argument for the cache.

    Attributes:
        fill: None where tokens that skip the layer leave it nothing.
    """

    def __init__(self, block: Block, fill: KeyValueFill | None) -> None:
        self.index = block.index
        self.attention = block.attention.modules[0]
        self.slot = layer_number(self.attention)
        self.forward = block.module.forward
        self.in_tuple = returns_tuple(block.module)
        self.fill = fill
        self.cache_name = cache_argument(self.forward)

    def filled(self, states: torch.Tensor, arguments: dict[str, Any]) -> list[torch.Tensor]:
        """Keys and values of states that do not run the layer, each [rows, heads, tokens, head width]."""
        assert self.fill is not None
        return self.fill.by_head(self.fill(states, self.cache_name, arguments))


class _TokenEngine:
    """Replaces the forward of every layer."""

    def __init__(self, model: Decoder, policy: TokenPolicy) -> None:
        self._model = model
        self._policy = policy
        self._begun = self._decoding = False
        self._prompt = 0  # positions of the latest prompt, padding included
        self._seen = 0  # positions before the running forward
        self._ends: list[int] = []  # tokens of each row in the running forward, padding on the right left out
        self._given: torch.Tensor | None = None  # position_ids of the running forward
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}  # rows of the running forward, as index tensors
        self._left: dict[int, list[float]] = {}  # by layer: where each row first skipped it and left it nothing

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward of the whole model begins; what its tokens are for is seen at its first layer."""
        self._begun = False
        self._given = kwargs.get("position_ids")
        self._indices.clear()

    def run(self, layer: _Layer, states: torch.Tensor, **arguments: Any) -> Any:
        """A layer's forward, on states [rows, tokens, width]."""
        if layer_number(layer.attention) != layer.slot:
            raise MethodError(
                "layers were taken out above a method whose tokens skip layers: name what takes them out first"
            )
        cache: Any = arguments.get(layer.cache_name)
        with self._model.adding("decision"):
            if not self._begun:
                self._policy.begin(self._tokens(states, cache))
                self._begun = True
            runs = self._policy.runs(layer.index, states)
        if runs is None:
            self._require_filled(layer, None)
            return layer.forward(states, **arguments)
        if runs.dtype is not torch.bool:
            raise MethodError(
                f"layer {layer.index}: a token runs a layer once or not at all, so its policy gives bool, not "
                f"{runs.dtype}; a layer that runs twice needs a path chosen for the whole sequence"
            )
        with self._model.adding("decision"):
            if layer.fill is None or self._decoding:
                runs = runs.cpu()  # the one wait for a policy that decides on the device
            self._require_filled(layer, runs)
            is_idle = layer.fill is None and not runs.any()
        if is_idle:
            return (states, None) if layer.in_tuple else states
        if not self._decoding:
            output = layer.forward(states, **arguments)
            with self._model.adding("decision"):
                mask = uploaded(runs, states.device)[..., None]  # [rows, tokens, 1]
                return _with_states(output, lambda after: torch.where(mask, after, states))
        flags = runs[:, 0].tolist()
        running = [row for row, flag in enumerate(flags) if flag]
        skipping = [row for row, flag in enumerate(flags) if not flag]
        if not skipping:
            return layer.forward(states, **arguments)
        del arguments[layer.cache_name]
        if not running:
            with self._model.adding("fill"):
                cache.update(*layer.filled(states, arguments), layer.slot)
            return (states, None) if layer.in_tuple else states
        return self._run_some(layer, states, cache, arguments, running, skipping)

    def _run_some(
        self,
        layer: _Layer,
        states: torch.Tensor,
        cache: Any,
        arguments: dict[str, Any],
        running: list[int],
        skipping: list[int],
    ) -> Any:
        """Run a layer on some rows of one token each, and fill its keys and values for the others."""
        batch = len(states)
        skips, index = self._index(skipping, states.device), self._index(running, states.device)
        filled = None
        if layer.fill is not None:
            with only(self._model, tuple(skipping)):
                filled = layer.filled(states[skips], rows_of(arguments, skips, batch))
        merging = _Merging(cache, index, skips, filled)
        with only(self._model, tuple(running)):
            output = layer.forward(states[index], **rows_of(arguments, index, batch), **{layer.cache_name: merging})
        return _with_states(output, lambda after: states.index_copy(0, index, after))

    def _index(self, rows: list[int], device: torch.device) -> torch.Tensor:
        """Rows as an index tensor, [some]; layers that the same rows run share it."""
        key = tuple(rows)
        if key not in self._indices:
            self._indices[key] = uploaded(rows, device)
        return self._indices[key]

    def _require_filled(self, layer: _Layer, runs: torch.Tensor | None) -> None:
        """Note which tokens skip a layer that is not filled, and refuse those that run it after one of their row.

        Args:
            runs: bool [rows, tokens], on the CPU where the layer is not filled; None where all run.
        """
        if layer.fill is not None:
            return
        before = self._left.get(layer.index, [inf] * len(self._ends))
        left = [place if place < self._seen else inf for place in before]  # [rows], without what was taken back since
        if runs is None and min(left) == inf:
            return
        for row, end in enumerate(self._ends):
            flags = [True] * end if runs is None else runs[row, :end].tolist()
            for place, flag in enumerate(flags, self._seen):
                if flag and left[row] < place:
                    raise MethodError(
                        f"layer {layer.index}: a token runs it after an earlier one of its row skipped it and left it "
                        "no keys and values; fills(layer) is False only where no token runs what an earlier one skipped"
                    )
                left[row] = left[row] if flag else min(left[row], place)
        self._left[layer.index] = left

    def _tokens(self, states: torch.Tensor, cache: Any) -> Tokens:
        """What the forward's tokens are for, by the context where there is one.

        Without one the last token of each row predicts: the prompt's last, or the token generated last.
        """
        rows, queries = states.shape[:2]
        seen = 0 if cache is None else int(cache.get_seq_length())
        self._decoding, self._seen, self._ends = queries == 1 and seen > 0, seen, [queries] * rows
        if not seen:  # another text begins
            self._left.clear()
        context = self._model.context
        columns = torch.arange(seen, seen + queries).expand(rows, -1)  # [rows, tokens]
        positions = columns
        if context is not None and context.kind == "score":
            lengths = torch.tensor([row.length for row in context.rows])[:, None]  # [rows, 1]
            first = torch.tensor([row.prompt_length for row in context.rows])[:, None] - 1  # [rows, 1]
            steps, real = columns - first, columns < lengths
            self._ends = real.sum(1).tolist()
        else:
            if context is not None:
                self._prompt = context.width
                padding = context.width - torch.tensor([row.length for row in context.rows])[:, None]  # [rows, 1]
                positions = columns - padding
            elif not self._decoding:
                self._prompt = seen + queries
            steps, real = columns - (self._prompt - 1), torch.tensor(True)
            if context is None and self._given is not None and self._given.ndim == 2:
                positions = self._given.cpu().expand(rows, -1)
        predicting = (steps >= 0) & real
        return Tokens(predicting, steps.clamp(min=0), positions.clamp(min=0))


class _Merging:
    """In place of the cache while some rows run a layer: adds the keys and values that the other rows are filled with.

    Args:
        running: rows that run the layer, [running].
        skipping: the other rows, [skipping].
        filled: keys and values of these, each [skipping, heads, tokens, head width]; None where nothing will attend to
            them, and zeros keep their place.
    """

    def __init__(
        self, cache: Any, running: torch.Tensor, skipping: torch.Tensor, filled: list[torch.Tensor] | None
    ) -> None:
        self._cache = cache
        self._running, self._skipping, self._filled = running, skipping, filled

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Append every row's keys and values, and return those of the rows that run.

        Args:
            keys, values: of the rows that run, [running, heads, tokens, head width].

        Returns:
            All keys and values of these rows, each [running, heads, seen tokens, head width].
        """
        merged = []
        for index, own in enumerate((keys, values)):
            batch = own.new_zeros(len(own) + len(self._skipping), *own.shape[1:])  # [rows, heads, tokens, head width]
            batch[self._running] = own
            if self._filled is not None:
                batch[self._skipping] = self._filled[index]
            merged.append(batch)
        return [cached[self._running] for cached in self._cache.update(*merged, *args, **kwargs)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _with_states(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A layer's output with its states changed; some layers return a tuple that starts with them."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
