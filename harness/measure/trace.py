"""What ran: hooks on the modules of the dense model, charged to the rows of the batch that is being served.

Observed, never reported. A block, attention or MLP that a method removes or goes around does not fire; one
that runs twice fires twice; one that sees fewer tokens has a shorter output; one that is not the dense model's is
counted as it runs (``harness.measure.counted``). The hooks only append, so the tracer can stay on: all arithmetic waits
until a batch is collected.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from harness.contract.decoder import Charge, Decoder, ForwardContext, input_shape
from harness.core.errors import TraceError
from harness.measure.branches import (
    changed_blocks,
    changed_surroundings,
    declared,
    foreign,
    head_of,
    inner_linears,
    is_changed_head,
    placed,
)
from harness.measure.cache import CacheReader, seen_by
from harness.measure.counted import OUTSIDE, Counted, Counter, Rows, block_slot
from harness.measure.segment import Phase, Segment
from harness.measure.shape import Linears, ModelShape
from harness.measure.tally import Slots, Tally
from harness.measure.traffic import cached_by_shape

if TYPE_CHECKING:
    from torch import nn

Event = tuple[int, Rows, tuple[int, ...] | Counted]
"""One call of a module: its slot, the batch rows that it ran on (None: all), and what: the shape of its output, [rows,
tokens, features] or [rows * tokens, features], or the work that was counted in it. A plain tuple, so that hooks stay
cheap."""


@dataclass(slots=True)
class Forwards:
    """Consecutive forwards of the whole batch in which the same modules ran on the same shapes.

    Attributes:
        queries: tokens of each row in one forward, padding included.
        context: positions of each row after the first of the forwards, by its cache.
        before: columns of the batch as it came that the cache had before; its padding is not met again.
        count: forwards.
        events: what ran in each of them.
        charges: what methods charged in each of them.
        keys: key positions that attention met in each forward, [layers]; empty where they follow from ``context``.
        written: bytes that a token adds to the cache, by layer, where the attention is not the dense model's.
        held: bytes that the batch's caches had after the last forward, [layers]; None without a cache.
    """

    phase: Phase
    queries: int
    context: int
    before: int
    count: int = 1
    events: list[Event] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    keys: tuple[int, ...] = ()
    written: dict[int, float] = field(default_factory=dict)
    held: tuple[int, ...] | None = None

    def extend(self, following: "Forwards") -> bool:
        """Take in the forward that follows if it is more of the same work, and the cache no smaller; whether it is."""
        alike = (
            self.phase == following.phase == "decode"
            and self.queries == following.queries
            and self.context + self.count * self.queries == following.context
            and self.keys == following.keys
            and sum(self.held or ()) <= sum(following.held or ())
            and self.events == following.events
            and self.charges == following.charges
        )
        if alike:
            self.count += 1
            self.held = following.held
        return alike


class Tracer:
    """Watches a decoder for the length of a ``with`` block; install it after the method is attached.

    Forwards are charged to ``model.context.rows`` while there is a context and ignored otherwise. A new
    context starts a new batch and discards what was not collected.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._undo = ExitStack()
        self._context: ForwardContext | None = None
        self._batch: list[Forwards] = []
        self._running: Forwards | None = None
        self._pending: list[Charge] = []  # charged between forwards
        self._main: Any = None  # the cache of the latest forward that was no draft
        self._hides = False  # a cache of the batch keeps what cannot be read

    def __enter__(self) -> Self:
        model = self._model
        self._shape = ModelShape.of(model)
        branches, others = placed(model, self._shape), foreign(model)
        self._slots = Slots(
            len(model.anatomy.blocks), [(each, Linears.of([each.module])) for each in model.auxiliaries]
        )
        attentions = [branch.modules[0] if branch.modules else None for branch in branches[::2]]
        changed = [branch for branch in branches if branch.changed]
        self._cache = CacheReader(model, attentions, [branch.slot // 2 for branch in changed])
        head, around, blocks = head_of(model), changed_surroundings(model), changed_blocks(model)
        has_own_head = is_changed_head(model)
        parts = {part: branch.slot for branch in branches for part in branch.dense}
        is_counting = changed or others or around or blocks or has_own_head
        self._counter = (
            Counter(model, parts, self._slots.head, self._slots.foreign, self._append) if is_counting else None
        )
        watched = [(branch.slot, branch.modules[-1]) for branch in branches if not branch.changed]
        watched += [] if has_own_head else [(self._slots.head, head)]
        watched += [(self._slots.added + index, each.module) for index, each in enumerate(model.auxiliaries)]
        for slot, module in watched:
            self._hook(module.register_forward_hook(self._observer(slot)))
            if self._counter is not None:
                self._hook(*self._counter.leave_out(module))
        if self._counter is not None:
            regions = [(branch.slot, member, part) for branch in changed for member, part in enumerate(branch.modules)]
            regions += [(self._slots.foreign, 0, part) for part in others]
            regions += [(block_slot(block.index), 0, block.module) for block in blocks]
            regions += [(self._slots.foreign, OUTSIDE, part) for part in around]
            regions += [(self._slots.head, 0, head)] if has_own_head else []
            for slot, member, part in regions:
                self._hook(*self._counter.watch(slot, member, part, self._listens))
            for leaf in dict.fromkeys(leaf for _, member, part in regions for leaf in declared(part) if member >= 0):
                self._hook(*self._counter.watch_declared(leaf))
            if around:  # whose linear layers the model's shape counts
                for part in self._outer():
                    for leaf in inner_linears(part):
                        self._hook(*self._counter.leave_out(leaf))
        self._hook(*self._cache.watch())
        whole = model.module
        self._hook(whole.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hook(whole.register_forward_hook(self._end, with_kwargs=True, always_call=True))
        self._undo.callback(setattr, model, "charged", model.charged)
        model.charged = self._charged
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._undo.close()
        if self._counter is not None:
            self._counter.reset()  # an interrupt calls no hook on its way

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
        if self._pending:
            batch = _charged_last(batch, self._pending)
            self._pending = []
        verifies = any(forwards.phase == "verify" for forwards in batch)
        kept = _kept(batch, self._cache.length(self._main)) if verifies else [None] * len(batch)
        rows = [
            [self._segment(row, context, forwards, stayed) for forwards, stayed in zip(batch, kept, strict=True)]
            for row in range(len(context.rows))
        ]
        if context.ends_in_guess and batch and batch[-1].phase == "verify":
            rows = [[*row[:-1], replace(row[-1], ends_in_guess=True)] for row in rows]
        if self._hides:
            rows = [[replace(segment, unread=True) for segment in row] for row in rows]
        return [_merged(row) for row in self._with_caches(rows, batch)]

    def _outer(self) -> list["nn.Module"]:
        """What surrounds the layers."""
        anatomy, head = self._model.anatomy, head_of(self._model)
        children = anatomy.parent.named_children()
        return [part for name, part in children if name != anatomy.layers_name and part is not head]

    def _hook(self, *handles: Any) -> None:
        for handle in handles:
            self._undo.callback(handle.remove)

    def _observer(self, slot: int) -> Callable[["nn.Module", Any, Any], None]:
        model = self._model

        def observe(module: "nn.Module", args: Any, output: Any) -> None:
            if (running := self._running) is not None and (context := model.context) is not None:
                tensor = output[0] if type(output) is tuple else output
                running.events.append((slot, context.active, tensor.shape))

        return observe

    def _listens(self) -> bool:
        return self._running is not None and self._model.context is not None

    def _append(self, slot: int, rows: Rows, work: Counted) -> None:
        if self._running is not None:
            self._running.events.append((slot, rows, work))

    def _charged(self, charge: Charge) -> None:
        if self._running is not None:
            self._running.charges.append(charge)
        elif self._model.context is not None:
            self._pending.append(charge)

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
        if context is not self._context:
            self._context, self._batch, self._main, self._hides = context, [], None, False
            self._cache.forget()
        cache = kwargs.get("past_key_values")
        seen = seen_by(cache, context.processed)
        self._cache.begin()
        # without a cache the batch is read as it came, or, as guidance does it, from its last token on
        before = context.processed if cache is not None else context.width * (queries < context.width)
        if context.speculating == "draft":  # which may read the whole batch into a cache of its own
            before = seen
        self._running = Forwards(_phase(context), queries, seen + queries, before, charges=self._pending)
        self._pending = []

    def _end(self, module: "nn.Module", args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._cache.end()
        context, forward, self._running = self._model.context, self._running, None
        if self._counter is not None:
            self._counter.reset()
        if context is None or forward is None or output is None:  # the last after an exception
            return
        cache = kwargs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if forward.phase != "draft":
            self._main = cache
        attended = {slot // 2 for slot, *_ in forward.events if slot < self._slots.head and slot % 2 == 0}
        seen = forward.context - forward.queries
        padded = any(row.length < context.width for row in context.rows)
        forward.keys = self._cache.unusual(seen, forward.queries, attended, padded=padded)
        forward.written = dict(self._cache.written)
        forward.held = self._cache.held(cache)
        self._hides = self._hides or self._cache.hides(cache, forward.held, forward.queries)
        if not self._batch or not self._batch[-1].extend(forward):
            self._batch.append(forward)

    def _segment(self, row: int, context: ForwardContext, forwards: Forwards, kept: int | None) -> Segment:
        """What a row did in one of these forwards."""
        rows = len(context.rows)
        tally, of_shape = Tally(self._slots), dict[tuple[tuple[int, ...], int], int]()
        for slot, active, what in forwards.events:
            running = range(rows) if active is None else active
            if row not in running:
                continue
            number, sharing = (row, rows) if active is None else (active.index(row), len(active))
            if isinstance(what, Counted):
                for shape in what.shapes:
                    _tokens_per_row(shape, sharing)
                tally.count(slot, what, number, sharing)
            else:
                if (tokens := of_shape.get((what, sharing))) is None:  # most modules have outputs of one shape
                    tokens = of_shape[what, sharing] = _tokens_per_row(what, sharing)
                tally.call(slot, tokens, sharing)
        for charge in forwards.charges:
            running = range(rows) if charge.rows is None else charge.rows
            if row in running:
                tally.charge(charge, running.index(row), len(running))
        padding = context.width - context.rows[row].length
        if context.padding == "left":
            padding -= forwards.before
        return tally.segment(
            self._shape,
            forwards.written,
            phase=forwards.phase,
            queries=forwards.queries,
            padding=min(max(padding, 0), forwards.queries),
            context=forwards.context,
            forwards=forwards.count,
            rows=rows,
            keys=forwards.keys,
            kept=kept,
        )

    def _with_caches(self, rows: list[list[Segment]], batch: list[Forwards]) -> list[list[Segment]]:
        """The rows with what their caches held, if that is anything but what ran through the layers."""
        read = [None if self._hides else forwards.held for forwards in batch]
        derived = [list(cached_by_shape(self._shape, row)) for row in rows]  # [rows][forwards][layers]
        every = [tuple(map(sum, zip(*of_rows, strict=True))) for of_rows in zip(*derived, strict=True)]
        if all(held is None or held == kept for held, kept in zip(read, every, strict=True)):
            return rows
        return [
            [
                replace(segment, held=own if held is None else tuple(-(-size // len(rows)) for size in held))
                for segment, held, own in zip(row, read, of_row, strict=True)
            ]
            for row, of_row in zip(rows, derived, strict=True)
        ]


def _phase(context: ForwardContext) -> Phase:
    if context.speculating is not None:
        return context.speculating
    if context.decoding:
        return "decode"
    return "score" if context.kind == "score" and context.read is None else "prefill"


def _kept(batch: list[Forwards], length: int | None) -> list[int | None]:
    """How many tokens of each verification stayed, by what the cache had when the next forward began.

    Args:
        length: positions that the cache has now; None where it is gone.
    """
    kept: list[int | None] = [None] * len(batch)
    for index in range(len(batch) - 1, -1, -1):
        forwards = batch[index]
        if forwards.phase == "draft":
            continue
        before = forwards.context - forwards.queries
        if forwards.phase == "verify" and length is not None:
            kept[index] = min(max(length - before, 0), forwards.queries)
        length = before
    return kept


def _charged_last(batch: list[Forwards], charges: list[Charge]) -> list[Forwards]:
    """The forwards with what was charged after the last of them."""
    if not batch:
        return batch
    *first, last = batch
    final = replace(last, count=1, context=last.context + (last.count - 1) * last.queries)
    final.charges = [*last.charges, *charges]
    earlier = [replace(last, count=last.count - 1)] if last.count > 1 else []
    return [*first, *earlier, final]


def _merged(row: list[Segment]) -> list[Segment]:
    """A row's segments, those of decode steps that go on with the same work as one."""
    segments: list[Segment] = []
    for segment in row:
        last = segments[-1] if segments else None
        if last is not None and segment.phase == "decode" and _continues(last, segment):
            segments[-1] = replace(last, forwards=last.forwards + segment.forwards, held=segment.held)
        else:
            segments.append(segment)
    return segments


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
    """Whether ``segment`` is more of the same work, right after ``last``, and its cache no smaller."""
    context = last.context + last.forwards * last.queries
    expected = replace(last, context=context, forwards=segment.forwards, held=segment.held)
    return segment == expected and sum(segment.held) >= sum(last.held)
