"""What ran: hooks on the modules of the dense model, charged to the rows of the batch that is being served.

Observed, never reported. A block, attention or MLP that a method removes or goes around does not fire; one
that runs twice fires twice; one that sees fewer tokens has a shorter output. The hooks only append, so the
tracer can stay on: all arithmetic waits until a batch is collected.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from harness.contract.decoder import Auxiliary, Decoder, ForwardContext, input_shape
from harness.core.errors import TraceError
from harness.measure.cache import CacheReader, seen_by
from harness.measure.segment import Phase, Segment
from harness.measure.shape import Linears

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


# One call of a module: its slot, the batch rows that it ran on (None: all), the shape of its output, [rows, tokens,
# features] or [rows * tokens, features]. A plain tuple, so that hooks stay cheap.
_Event = tuple[int, tuple[int, ...] | None, tuple[int, ...]]


@dataclass(slots=True)
class _Forwards:
    """Consecutive forwards of the whole batch in which the same modules ran on the same shapes.

    Attributes:
        queries: tokens of each row in one forward, padding included.
        context: positions of each row after the first of the forwards, by its cache.
        before: columns of the batch as it came that the cache had before; its padding is not met again.
        keys: key positions that attention met in each forward, [layers]; empty where they follow from ``context``.
        count: forwards.
        events: what ran in each of them.
    """

    phase: Phase
    queries: int
    context: int
    before: int
    keys: tuple[int, ...]
    count: int
    events: list[_Event]

    def extend(self, following: "_Forwards") -> bool:
        """Take in the forward that follows if it is more of the same work; whether it is."""
        alike = (
            self.phase == following.phase == "decode"
            and self.queries == following.queries
            and self.context + self.count * self.queries == following.context
            and self.keys == following.keys
            and self.events == following.events
        )
        self.count += alike
        return alike


class Tracer:
    """Watches a decoder for the length of a ``with`` block; install it after the method is attached.

    Forwards are charged to ``model.context.rows`` while there is a context and ignored otherwise. A new
    context starts a new batch and discards what was not collected.

    Slots, in the order of events: attention and MLP of every dense layer, the head, then the modules that methods
    added (``Decoder.auxiliaries``).
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._layers = len(model.anatomy.blocks)
        self._cache = CacheReader(model)
        self._added: list[tuple[Auxiliary, Linears]] = []
        self._handles: list[RemovableHandle] = []
        self._context: ForwardContext | None = None
        self._batch: list[_Forwards] = []
        self._running: _Forwards | None = None

    def __enter__(self) -> Self:
        anatomy = self._model.anatomy
        branches = [(block.attention, block.mlp) for block in anatomy.blocks]
        watched = [branch.modules[-1] for branch in chain.from_iterable(branches)]
        self._added = [(added, Linears.of([added.module])) for added in self._model.auxiliaries]
        for slot, module in enumerate([*watched, anatomy.head, *(added.module for added, _ in self._added)]):
            self._handles.append(module.register_forward_hook(self._observer(slot)))
        self._handles += self._cache.watch()
        whole = self._model.module
        self._handles.append(whole.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(whole.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def collect(self) -> list[list[Segment]]:
        """What ran since the batch began: one list of segments for each row of its context, in order.

        Raises:
            TraceError: a module saw other rows than the context said; a method that runs a module on some
                rows alone declares them with ``ForwardContext.only``.
        """
        context, batch = self._context, self._batch
        self._context, self._batch = None, []
        if context is None:
            return []
        return [self._segments(row, context, batch) for row in range(len(context.rows))]

    def _observer(self, slot: int) -> Callable[["nn.Module", Any, Any], None]:
        def observe(module: "nn.Module", args: Any, output: Any) -> None:
            running, context = self._running, self._model.context
            if running is not None and context is not None:
                tensor = output[0] if type(output) is tuple else output
                running.events.append((slot, context.active, tensor.shape))

        return observe

    def _begin(self, module: "nn.Module", args: Any, kwargs: dict[str, Any]) -> None:
        """What the forward is for, and what the cache has before it runs."""
        context, self._running = self._model.context, None
        if context is None:
            return
        rows, queries = input_shape(args, kwargs)
        if rows != len(context.rows):
            raise TraceError(
                f"a forward of {rows} rows ran while the batch has {len(context.rows)}: generation that tries several "
                "continuations of a prompt is not traced"
            )
        cache = kwargs.get("past_key_values")
        seen = seen_by(cache, context.processed)
        self._cache.met.clear()
        in_one = context.kind == "score" and context.read is None
        phase: Phase = "score" if in_one else "decode" if context.decoding else "prefill"
        # without a cache the batch is read as it came, or, as guidance does it, from its last token on
        before = context.processed if cache is not None else context.width * (queries < context.width)
        self._running = _Forwards(phase, queries, seen + queries, before, (), 1, [])

    def _end(self, module: "nn.Module", args: Any, output: Any) -> None:
        context, forward, self._running = self._model.context, self._running, None
        if context is None or forward is None:
            return
        if context is not self._context:
            self._context, self._batch = context, []
        attended = {slot // 2 for slot, *_ in forward.events if slot < 2 * self._layers and slot % 2 == 0}
        seen = forward.context - forward.queries
        padded = any(row.length < context.width for row in context.rows)
        forward.keys = self._cache.unusual(seen, forward.queries, attended, padded=padded)
        if not self._batch or not self._batch[-1].extend(forward):
            self._batch.append(forward)

    def _segments(self, row: int, context: ForwardContext, batch: list[_Forwards]) -> list[Segment]:
        segments: list[Segment] = []
        for forwards in batch:
            segment = self._segment(row, context, forwards)
            last = segments[-1] if segments else None
            if last is not None and segment.phase == "decode" and _continues(last, segment):
                segments[-1] = replace(last, forwards=last.forwards + segment.forwards)
            else:
                segments.append(segment)
        return segments

    def _segment(self, row: int, context: ForwardContext, forwards: _Forwards) -> Segment:
        rows = len(context.rows)
        head = 2 * self._layers
        tokens = [0] * (head + 1 + len(self._added))  # [slots], of this row
        calls = [0] * len(tokens)  # [slots]
        reads = [0.0] * len(tokens)  # [slots], shares of passes over the weights
        last = 0  # tokens that the head ran on when it ran last
        for slot, active, shape in forwards.events:
            if active is None or row in active:
                sharing = rows if active is None else len(active)
                of_row = _tokens_per_row(shape, sharing)
                tokens[slot] += of_row
                calls[slot] += 1
                reads[slot] += 1 / sharing
                last = of_row if slot == head else last
        padding = context.width - context.rows[row].length
        if context.padding == "left":
            padding -= forwards.before
        return Segment(
            phase=forwards.phase,
            queries=forwards.queries,
            padding=min(max(padding, 0), forwards.queries),
            context=forwards.context,
            forwards=forwards.count,
            rows=rows,
            attention=tuple(tokens[:head:2]),
            mlp=tuple(tokens[1:head:2]),
            head=tokens[head],
            checks=tokens[head] - last,
            check_calls=max(calls[head] - 1, 0),
            attention_reads=tuple(reads[:head:2]),
            mlp_reads=tuple(reads[1:head:2]),
            head_reads=reads[head],
            keys=forwards.keys,
            **self._work_added(tokens[head + 1 :], calls[head + 1 :], reads[head + 1 :]),
        )

    def _work_added(self, tokens: list[int], calls: list[int], reads: list[float]) -> dict[str, Any]:
        """Work of modules that methods added, by their slots, as fields of a segment."""
        if not any(tokens):
            return {}
        fill = [0] * self._layers  # tokens
        work = {"fill_macs": 0, "router": 0, "router_calls": 0, "router_macs": 0, "auxiliary_bytes": 0.0}
        for (added, linears), count, times, read in zip(self._added, tokens, calls, reads, strict=True):
            work["auxiliary_bytes"] += read * linears.bytes
            if added.layer is None:
                work["router"] += count
                work["router_calls"] += times
                work["router_macs"] += count * linears.macs
            else:
                fill[added.layer] += count
                work["fill_macs"] += count * linears.macs
        return {**work, "fill": tuple(fill) if any(fill) else ()}


def _tokens_per_row(shape: tuple[int, ...], rows: int) -> int:
    """Tokens of each row in an output of shape [rows, tokens, features] or [rows * tokens, features]."""
    total = prod(shape[:-1])
    if (len(shape) > 2 and shape[0] != rows) or total % rows:
        raise TraceError(
            f"a module gave an output of shape {list(shape)} while {rows} rows were running; "
            "a method that runs a module on some of the rows declares them with ForwardContext.only"
        )
    return total // rows


def _continues(last: Segment, segment: Segment) -> bool:
    """Whether ``segment`` is more of the same work, right after ``last``."""
    expected = replace(last, context=last.context + last.forwards * last.queries, forwards=segment.forwards)
    return segment == expected
