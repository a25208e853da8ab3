"""One row's part of what ran in a forward: events and charges added up, slot by slot, to a segment."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from harness.contract.decoder import Auxiliary, Charge
from harness.measure.counted import Counted
from harness.measure.extra import FILL, Extra, Part, Work, share
from harness.measure.segment import Segment
from harness.measure.shape import Linears, ModelShape

FOREIGN = "layer"
"""The kind of added work of modules among the layers that are none of the dense model's."""


@dataclass(frozen=True)
class Slots:
    """The numbers by which a trace knows modules.

    Attention and MLP of every dense layer, the head, layers that are none of the dense model's, then the modules that
    methods added.
    """

    layers: int
    auxiliaries: Sequence[tuple[Auxiliary, Linears]]

    @property
    def head(self) -> int:
        """The language-model head's."""
        return 2 * self.layers

    @property
    def foreign(self) -> int:
        """That of layers that are none of the dense model's."""
        return 2 * self.layers + 1

    @property
    def added(self) -> int:
        """The first one of modules that methods added."""
        return 2 * self.layers + 2


class Tally:
    """Adds up one row's work in one forward."""

    def __init__(self, slots: Slots) -> None:
        self._slots, self._head = slots, slots.head
        count = slots.added + len(slots.auxiliaries)
        self._tokens = [0] * count  # [slots]
        self._calls = [0] * count  # [slots]
        self._reads = [0.0] * count  # [slots], shares of passes over the weights
        self._last = 0  # tokens that the head ran on when it ran last
        self._members: dict[int, dict[int, tuple[int, float]]] = {}  # tokens and reads of a changed branch's modules
        self._own: defaultdict[Part, dict[int, Work]] = defaultdict(dict)
        self._charged: defaultdict[Part, dict[int, Work]] = defaultdict(dict)
        self._extra: dict[str, Extra] = {}
        self._uncounted: defaultdict[int, set[str]] = defaultdict(set)  # operators that nothing counts, by slot

    def call(self, slot: int, tokens: int, sharing: int) -> None:
        """A module ran on so many of the row's tokens, for as many rows as share it."""
        self._tokens[slot] += tokens
        self._calls[slot] += 1
        self._reads[slot] += 1 / sharing
        if slot == self._head:
            self._last = tokens

    def count(self, slot: int, work: Counted, number: int, sharing: int) -> None:
        """A changed branch ran, of whose work the row has a share.

        Args:
            number: the row's place among those that share it.
        """
        tokens = share(work.tokens, sharing, number)
        linear, products = share(work.linear, sharing, number), share(work.products, sharing, number)
        read = work.bytes / sharing
        if work.uncounted:
            self._uncounted[slot].update(work.uncounted)
        if slot == self._slots.foreign:
            self._add(FOREIGN, Extra(tokens, 1, linear + products, read))
            return
        if slot == self._head:
            self.call(slot, tokens, sharing)
            _plus(self._own["head"], 0, Work(linear + products, read))
            return
        members = self._members.setdefault(slot, {})
        before = members.get(work.member, (0, 0.0))
        members[work.member] = before[0] + tokens, before[1] + 1 / sharing
        layer, is_mlp = divmod(slot, 2)
        if is_mlp:
            _plus(self._own["mlp"], layer, Work(linear + products, read))
        else:
            _plus(self._own["attention"], layer, Work(linear, read))
            _plus(self._own["scores"], layer, Work(products))

    def charge(self, charge: Charge, number: int, sharing: int) -> None:
        """A method charged work, of which the row has a share."""
        macs, tokens = share(charge.macs, sharing, number), share(charge.tokens, sharing, number)
        read = charge.bytes / sharing
        if charge.kind in ("attention", "mlp") and charge.layer is not None:
            part: Part = "scores" if charge.kind == "attention" else "mlp"
            _plus(self._charged[part], charge.layer, Work(macs, read if charge.bytes else None))
            if part == "mlp":
                slot = 2 * charge.layer + 1
                members = self._members.setdefault(slot, {})
                before = members.get(-1, (0, 0.0))
                members[-1] = before[0] + tokens, before[1] + 1 / sharing
            return
        self._add(charge.kind, Extra(tokens, 1, macs, read))

    def segment(self, shape: ModelShape, written: dict[int, float], **fields: Any) -> Segment:
        """The row's segment.

        Args:
            shape: the model's, which says what a layer's work is where it was not counted.
            written: bytes that a token adds to the cache, by layer, where that was read.
            fields: the segment's others.
        """
        for slot, members in self._members.items():  # several modules of a branch run one after the other
            most, read = max(members.values())
            if most > self._tokens[slot]:
                self._tokens[slot], self._reads[slot] = most, read
        tokens, calls, reads, head = self._tokens, self._calls, self._reads, self._slots.head
        fill = self._auxiliaries()
        segment = Segment(
            attention=tuple(tokens[:head:2]),
            mlp=tuple(tokens[1:head:2]),
            head=tokens[head],
            checks=tokens[head] - self._last,
            check_calls=max(calls[head] - 1, 0),
            attention_reads=tuple(reads[:head:2]),
            mlp_reads=tuple(reads[1:head:2]),
            head_reads=reads[head],
            fill=tuple(fill) if any(fill) else (),
            extra=self._extra,
            **fields,
        )
        own = self._counted(shape, segment, written)
        if own:
            object.__setattr__(segment, "own", own)
        if self._uncounted:
            object.__setattr__(segment, "uncounted", self._unknown(shape, segment))
        return segment

    def _unknown(self, shape: ModelShape, segment: Segment) -> tuple[str, ...]:
        """The operators that nothing counts, without those of branches whose work is charged."""
        unknown = set[str]()
        for slot, operators in self._uncounted.items():
            layer, is_mlp = divmod(slot, 2)
            is_known = layer in self._charged.get("mlp" if is_mlp else "scores", ())
            if is_known and not is_mlp:  # of attention its products are charged, and no projections
                usual = _usual(shape, segment, "attention", layer)
                is_known = self._own["attention"].get(layer, usual).macs >= usual.macs
            if slot >= self._slots.head or not is_known:
                unknown |= operators
        return tuple(sorted(unknown))

    def _add(self, kind: str, work: Extra) -> None:
        self._extra[kind] = self._extra.get(kind, Extra()).plus(work)

    def _auxiliaries(self) -> list[int]:
        """Adds the work of modules that methods added; tokens that each layer's keys and values were filled for."""
        fill = [0] * self._slots.layers
        for slot, (added, linears) in enumerate(self._slots.auxiliaries, self._slots.added):
            tokens = self._tokens[slot]
            if self._calls[slot]:
                work = Extra(tokens, self._calls[slot], tokens * linears.macs, self._reads[slot] * linears.bytes)
                self._add(added.kind, work)
                if added.kind == FILL and added.layer is not None:
                    fill[added.layer] += tokens
        return fill

    def _counted(self, shape: ModelShape, segment: Segment, written: dict[int, float]) -> dict[Part, dict[int, Work]]:
        """What was counted or charged of the layers, without what the shape says all the same."""
        own: dict[Part, dict[int, Work]] = {part: dict(layers) for part, layers in self._own.items()}
        for part, charged in self._charged.items():
            for layer, work in charged.items():
                seen = own.setdefault(part, {}).get(layer)
                own[part][layer] = work if seen is None or work.bytes is not None else Work(work.macs, seen.bytes)
        for layer, width in written.items():
            if width != shape.kv_bytes(layer):
                own.setdefault("cache", {})[layer] = Work(0, width)
        parts: dict[Part, dict[int, Work]] = {}
        for part, layers in own.items():
            left = {layer: work for layer, work in layers.items() if not _is_usual(shape, segment, part, layer, work)}
            if left:
                parts[part] = left
        return parts


def _plus(layers: dict[int, Work], layer: int, work: Work) -> None:
    layers[layer] = layers[layer].plus(work) if layer in layers else work


def _is_usual(shape: ModelShape, segment: Segment, part: Part, layer: int, work: Work) -> bool:
    """Whether a layer's part did what the model's shape says of its tokens."""
    if part == "cache":
        return False
    usual = _usual(shape, segment, part, layer)
    return work.macs == usual.macs and (work.bytes is None or isclose(work.bytes, usual.bytes or 0.0, abs_tol=1e-6))


def _usual(shape: ModelShape, segment: Segment, part: Part, layer: int) -> Work:
    """What the model's shape says that a part does with the tokens that it ran on."""
    if part == "head":
        return Work(shape.head.macs * segment.head, segment.head_reads * shape.head.read(segment.head * segment.rows))
    of_layer, attended, fed = shape.layers[layer], segment.attention[layer], segment.mlp[layer]
    positions = segment.attended(layer, of_layer.window) // segment.forwards
    if part == "mlp":
        return Work(of_layer.mlp.macs * fed, segment.mlp_reads[layer] * of_layer.mlp_read(fed * segment.rows))
    if part == "attention":
        macs = of_layer.attention.macs * attended
        macs += of_layer.expansion.macs * positions * attended // segment.queries
        return Work(macs, segment.attention_reads[layer] * of_layer.attention_read(attended * segment.rows))
    return Work(of_layer.pair_macs * positions * attended, 0.0)
