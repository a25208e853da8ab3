"""What ran for one row of a batch: runs of like forwards, and the arithmetic on token counts alone.

A row's trace is a list of segments. A scored text is one segment; a generation is a prefill and, as long as
the work stays the same from token to token, one more segment for all decode steps. Nothing here needs the
model, so a stored trace can be costed again anywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from harness.measure.extra import OLDER, Extra, Own, Part, Work, extra_of, own_of

if TYPE_CHECKING:
    from harness.results.samples import SegmentLine

Phase = Literal["score", "prefill", "decode", "draft", "verify"]
"""What a forward is for: scoring a given text, reading a prompt, writing tokens after it; guessing such tokens, or
looking at what was guessed."""
READING: Final[tuple[Phase, ...]] = ("score", "prefill")
WRITING: Final[tuple[Phase, ...]] = ("decode", "draft", "verify")


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive forwards of one row that did the same work, each seeing ``queries`` positions more.

    Tokens say how much was computed, reads how often weights were fetched for it. Where four rows share a forward of 10
    tokens each, a layer has 10 tokens and 1/4 read; if one of the rows runs the layer once more alone, that row has 20
    tokens and 5/4 reads.

    Attributes:
        phase: what the forwards were for.
        queries: tokens of the row in each forward, padding included.
        padding: how many of ``queries`` are padding.
        context: positions at the first forward, cached ones, its own queries and any left padding included.
        forwards: how many forwards.
        rows: rows of the batch that shared each forward.
        attention: tokens that each dense layer's attention ran on, per forward, [layers]; twice ``queries`` if it
            ran twice.
        mlp: the same of each dense layer's MLP.
        head: tokens that the language-model head ran on, per forward.
        checks: how many of these were checks of early exits, before the model's own last run of the head.
        check_calls: runs of the head in which they were checked, per forward; 0 beside ``checks`` in a trace that was
            stored without them.
        attention_reads: this row's share of the passes over each layer's attention weights, per forward, [layers].
        mlp_reads: the same of the MLP weights.
        head_reads: the same of the head's weights.
        fill: tokens for which each dense layer's keys and values alone were projected, per forward, [layers]; empty
            if none.
        extra: work that methods added, by kind, per forward; that of fills too.
        own: work of layers that are not the dense model's, as it was counted, per forward; none of a layer that did
            what the model's shape says.
        keys: key positions that each layer's attention met in each forward, [layers], where these were not all of
            ``context`` or the layer's sliding window, as with a cache of fixed size; else empty.
        held: bytes that each layer's cache held for the row after the last of the forwards, [layers], where a row's
            caches held other than all that ran; else empty.
        kept: of a verification, how many of ``queries`` stayed in the cache; None where all of them did.
        ends_in_guess: a verification's text ended in a guess that was right, which is not in the cache.
        uncounted: operators that ran which nothing counts: what the forwards multiplied is not known.
        unread: a cache of the batch kept numbers where they cannot be read, so that all that ran counts as held.
    """

    phase: Phase
    queries: int
    padding: int
    context: int
    forwards: int
    rows: int
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    head: int
    attention_reads: tuple[float, ...]
    mlp_reads: tuple[float, ...]
    head_reads: float
    checks: int = 0
    check_calls: int = 0
    fill: tuple[int, ...] = ()
    extra: Mapping[str, Extra] = field(default_factory=dict)
    own: Own = field(default_factory=dict)
    keys: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    kept: int | None = None
    ends_in_guess: bool = False
    uncounted: tuple[str, ...] = ()
    unread: bool = False

    def work(self, part: Part, layer: int) -> Work | None:
        """What a part of a layer did in a forward, where it was counted as it ran."""
        layers = self.own.get(part)
        return None if layers is None else layers.get(layer)

    def attended(self, layer: int, window: int | None = None) -> int:
        """Key positions that a layer's attention met in a forward, its own queries included, over all forwards.

        With a sliding window of w positions, the cache holds the last w - 1 once it is full, so a forward
        sees w - 1 + queries; until then, and in the whole first forward, it sees everything before it.
        """
        if self.keys:
            return self.forwards * self.keys[layer]
        before = self.context - self.queries  # positions before the first forward
        growing = self.forwards  # forwards that still see everything
        if window is not None:
            growing = min(max(-(-(window - before) // self.queries), 0), self.forwards)
        # context, context + queries, ...: an arithmetic series
        grown = growing * self.context + self.queries * (growing * (growing - 1) // 2)
        sliding = (self.forwards - growing) * ((window or 0) - 1 + self.queries)
        return grown + sliding

    def rectangle(self, layer: int, window: int | None = None) -> int:
        """Query-key pairs per head of a layer, over all forwards, of every query with every position in the cache."""
        return self.queries * self.attended(layer, window)

    def executed_pairs(self, layer: int, window: int | None = None) -> int:
        """Query-key pairs per head that time is charged for, over all forwards: what is masked among a forward's own
        queries is left out, what a window masks is not.
        """
        within = min(self.queries, self.keys[layer]) if self.keys else self.queries
        return self.rectangle(layer, window) - self.forwards * (within * (within - 1) // 2)

    def causal_pairs(self, window: int | None = None) -> int:
        """Query-key pairs per head, over all forwards, of each query with itself and what precedes it."""
        first = self.context - self.queries
        return _pairs_up_to(first + self.forwards * self.queries, window) - _pairs_up_to(first, window)

    def to_json(self) -> "SegmentLine":
        """The segment as JSON values; like neighbouring layers are one (tokens, reads, layers)."""
        names = ("checks", "check_calls", "fill", "extra", "ends_in_guess", "uncounted", "unread")
        added: dict[str, Any] = {name: value for name in names if (value := getattr(self, name))}
        for name in ("keys", "held"):
            if values := getattr(self, name):
                added[name] = [(value, len(list(layers))) for value, layers in groupby(values)]
        if self.own:
            layers_of = {part: sorted(layers.items()) for part, layers in self.own.items()}
            added["own"] = {part: [(layer, *work) for layer, work in each] for part, each in layers_of.items()}
        if self.kept is not None:
            added["kept"] = self.kept
        return {
            "phase": self.phase,
            "queries": self.queries,
            "padding": self.padding,
            "context": self.context,
            "forwards": self.forwards,
            "rows": self.rows,
            "attention": _packed(self.attention, self.attention_reads),
            "mlp": _packed(self.mlp, self.mlp_reads),
            "head": (self.head, self.head_reads),
            **added,  # type: ignore[typeddict-item] # the names are those of the type
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The segment that ``to_json`` wrote, today or in an older version."""
        rest = {name: value for name, value in plain.items() if name not in OLDER}
        rest["attention"], rest["attention_reads"] = _unpacked(plain["attention"])
        rest["mlp"], rest["mlp_reads"] = _unpacked(plain["mlp"])
        rest["head"], rest["head_reads"] = plain["head"]
        rest |= {name: tuple(plain.get(name, ())) for name in ("fill", "uncounted")}
        rest["extra"], rest["own"] = extra_of(plain), own_of(plain)
        for name in ("keys", "held"):
            rest[name] = tuple(value for value, layers in plain.get(name, ()) for _ in range(layers))
        return cls(**rest)


@dataclass(frozen=True, slots=True)
class Depth:
    """Layer-tokens of some forwards: one token through one layer; attention and MLP are half a layer each.

    Attributes:
        executed: layer-tokens that ran; a repeated layer counts twice.
        dense: layer-tokens that the dense model would have run: none for a draft, and of a verification those that
            stayed.
    """

    executed: float
    dense: int

    @property
    def mean(self) -> float | None:
        """The share of the dense depth that an average token went through; None without tokens."""
        return self.executed / self.dense if self.dense else None


def depth(segments: Iterable[Segment], *phases: Phase) -> Depth:
    """Executed and dense layer-tokens of the forwards of these phases, padding included."""
    executed = dense = 0
    for segment in segments:
        if segment.phase in phases:
            executed += segment.forwards * (sum(segment.attention) + sum(segment.mlp))
            dense += segment.forwards * _as_written(segment) * len(segment.attention)
    return Depth(executed / 2, dense)


def _as_written(segment: Segment) -> int:
    """Tokens of a forward that dense would run: of guesses, those that were right."""
    if segment.phase == "draft":
        return 0
    return segment.queries if segment.kept is None else segment.kept


def as_dense(segment: Segment) -> Segment:
    """What the dense model runs for the same forwards: every layer once on every token, and the head as it ran last."""
    layers, share, head = len(segment.attention), 1 / segment.rows, segment.head - segment.checks
    return replace(
        segment,
        attention=(segment.queries,) * layers,
        mlp=(segment.queries,) * layers,
        head=head,
        checks=0,
        check_calls=0,
        attention_reads=(share,) * layers,
        mlp_reads=(share,) * layers,
        head_reads=share if head else 0.0,
        fill=(),
        extra={},
        own={},
        ends_in_guess=False,
        uncounted=(),
        unread=False,
    )


def positions_before(segments: Iterable[Segment]) -> Iterator[int]:
    """Positions of the row's text before each of its segments, whether caches kept them or not.

    A cache that a method shortens by hand has fewer, and its length does not say so.
    """
    processed = 0
    for segment in segments:
        cached = segment.context - segment.queries
        before = max(processed, cached) if cached else 0  # without a cache another sequence begins
        yield before
        if segment.phase != "draft":
            processed = before + segment.forwards * _as_written(segment)


def row_as_dense(segments: Iterable[Segment], windows: Sequence[int | None] = ()) -> list[Segment]:
    """What the dense model runs for a row's forwards, with all in its cache that the row read and wrote before.

    A cache of fixed size, which is larger than its contents, is dense's too; one that holds or shows less is not. Dense
    drafts nothing, and writes the tokens that a verification keeps one by one.

    Args:
        windows: of the layers that slide over positions, [layers]; empty where none does.
    """
    dense, row = list[Segment](), list(segments)
    for segment, before in zip(row, positions_before(row), strict=True):
        if segment.phase == "draft":
            continue
        if segment.phase == "verify":
            tokens = _as_written(segment)
            single = replace(segment, phase="decode", queries=1, context=before + 1, forwards=tokens, head=1, checks=0)
            dense += [replace(as_dense(single), keys=(), held=(), kept=None)] * (tokens > 0)
            continue
        context = before + segment.queries
        is_larger = bool(segment.keys) and all(
            keys >= context - before + (before if window is None else min(before, window - 1))
            for keys, window in zip(segment.keys, windows or repeat(None), strict=False)
        )
        keys, held = (segment.keys, segment.held) if is_larger else ((), ())
        dense.append(replace(as_dense(segment), context=context, keys=keys, held=held))
    return dense


def ran_as_dense(segments: Iterable[Segment]) -> bool:
    """Whether every layer ran once on every token, and the head once at the end: nothing was skipped or added.

    A method that makes the layers themselves cheaper also runs as dense; it shows in the model's shape.
    """
    return all(
        not segment.checks
        and not segment.extra
        and not segment.own
        and not segment.uncounted
        and segment.phase not in ("draft", "verify")
        and all(tokens == segment.queries for tokens in (*segment.attention, *segment.mlp))
        for segment in segments
    )


def unpadded(segments: Iterable[Segment]) -> list[Segment]:
    """The segments as they would be had the row run without padding: what was useful of the executed work.

    A forward that read padding alone is left out. A module that ran on a part of the tokens keeps its count: which of
    them were padding is not known. The batch is kept too: rows still share their weight reads.
    """
    useful: list[Segment] = []
    before = 0
    for segment in segments:
        starts = segment.context == segment.queries  # nothing is cached
        before = segment.padding + (0 if starts else before)
        length = segment.queries - segment.padding
        if not length:  # a part of the prompt that is all padding for this row
            continue
        useful.append(
            replace(
                segment,
                queries=length,
                padding=0,
                context=segment.context - before,
                attention=tuple(_scaled(tokens, segment.queries, length) for tokens in segment.attention),
                mlp=tuple(_scaled(tokens, segment.queries, length) for tokens in segment.mlp),
                head=_scaled(segment.head - segment.checks, segment.queries, length) + segment.checks,
                fill=tuple(_scaled(tokens, segment.queries, length) for tokens in segment.fill),
                own=_own_of(segment, length, before),
            )
        )
    return useful


def _own_of(segment: Segment, length: int, before: int) -> Own:
    """Counted work in parts of all queries: of products with keys, in parts of all positions too."""
    if not segment.own or (length == segment.queries and not before):
        return segment.own
    queries, positions = length / segment.queries, 1 - before / segment.context
    head = queries if segment.head >= segment.queries else 1.0
    shares = {"attention": queries, "scores": queries * positions, "mlp": queries, "cache": 1.0, "head": head}
    return {
        part: {layer: Work(round(work.macs * shares[part]), work.bytes) for layer, work in layers.items()}
        for part, layers in segment.own.items()
    }


def _scaled(tokens: int, queries: int, length: int) -> int:
    passes, part = divmod(tokens, queries)
    return tokens if part else passes * length


def _pairs_up_to(length: int, window: int | None) -> int:
    """Causal pairs among the first ``length`` positions."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def _packed(tokens: Sequence[int], reads: Sequence[float]) -> list[tuple[int, float, int]]:
    """Runs of like layers: (tokens, reads, layers) each."""
    return [(*work, len(list(layers))) for work, layers in groupby(zip(tokens, reads, strict=True))]


def _unpacked(runs: Sequence[Sequence[Any]]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens and reads, [layers] each."""
    tokens = tuple(tokens for tokens, _, layers in runs for _ in range(layers))
    return tokens, tuple(reads for _, reads, layers in runs for _ in range(layers))
