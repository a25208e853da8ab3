"""Bytes from a trace: what a memory-bound step must at least read and write.

Weights are read once per pass and shared by the rows of the batch; keys and values are read for the positions
before a forward's own and written for its own; embeddings are one row per token. Activations are left out,
and fused attention is assumed: scores never leave the chip.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.measure.segment import Segment, positions_before
from harness.measure.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved.

    Attributes:
        weights: weights of the linears that ran and of the head, this row's share.
        kv: keys and values read and written.
        embedding: embedding rows read.
    """

    weights: float
    kv: int
    embedding: int


@dataclass(frozen=True, slots=True)
class Cached:
    """A row's largest cache of keys and values.

    Attributes:
        layers: bytes in each layer, [layers].
        positions: of the row by then, padding included.
    """

    layers: tuple[int, ...]
    positions: int

    @property
    def bytes(self) -> int:
        """Bytes in all layers."""
        return sum(self.layers)

    @property
    def per_token(self) -> float | None:
        """Bytes for each position of the row, kept or not; None without any."""
        return self.bytes / self.positions if self.positions else None


def traffic(shape: ModelShape, segments: Iterable[Segment]) -> Traffic:
    """Bytes that the forwards of a row moved, padding included."""
    weights = kv = 0.0
    embedding, row = 0, list(segments)
    for segment, moved in zip(row, cache_traffic(shape, row), strict=True):
        weights += segment.forwards * _weights(shape, segment)
        filled = sum(tokens * shape.kv_bytes(index) for index, tokens in enumerate(segment.fill))
        kv += sum(moved) + segment.forwards * filled
        embedding += segment.forwards * segment.queries * shape.embedding_bytes
    return Traffic(weights, round(kv), embedding)


def cache_traffic(shape: ModelShape, segments: Iterable[Segment]) -> Iterator[list[float]]:
    """Bytes that attention read and wrote of the cache in all forwards of each segment, [layers].

    Earlier positions are read once per pass, own ones written. No more is read than the cache held, which where it was
    compressed is less than the positions took when they were written.
    """
    held: tuple[int, ...] = ()
    for segment in segments:
        own = segment.forwards * segment.queries
        moved = []
        for index, tokens in enumerate(segment.attention):
            work = segment.work("cache", index)
            width = shape.kv_bytes(index) if work is None or work.bytes is None else work.bytes  # of a token
            read = max(segment.attended(index, shape.layers[index].window) - own, 0) * width
            if segment.held:
                before = held[index] if held else segment.held[index]
                read = min(read, segment.forwards * (before + segment.held[index]) / 2)
            moved.append(_passes(tokens, segment.queries) * read + segment.forwards * tokens * width)
        held = segment.held
        yield moved


def kv_cache(shape: ModelShape, segments: Iterable[Segment]) -> Cached:
    """A row's cache of keys and values when it was largest, for the longest of its sequences.

    What caches held where it was read; else a layer caches what ran through it: 2 Hk dh numbers for each token and
    pass. A sliding-window layer keeps its last w - 1 positions of each pass.
    """
    largest = Cached((0,) * len(shape.layers), 0)
    row = list(segments)
    for segment, before, derived in zip(row, positions_before(row), cached_by_shape(shape, row), strict=True):
        cached = Cached(segment.held or derived, before + segment.forwards * segment.queries)
        if cached.bytes >= largest.bytes:
            largest = cached
    return largest


def kv_cache_bytes(shape: ModelShape, segments: Iterable[Segment]) -> int:
    """Bytes of that cache."""
    return kv_cache(shape, segments).bytes


def cached_by_shape(shape: ModelShape, segments: Iterable[Segment]) -> Iterator[tuple[int, ...]]:
    """Bytes that the layers' caches have after each segment if they keep all that ran through them, [layers]."""
    cached = [0] * len(shape.layers)  # tokens in each layer's cache
    for segment in segments:
        if segment.context == segment.queries:
            cached = [0] * len(shape.layers)  # another sequence begins
        positions = _positions(segment)
        for index, (layer, tokens) in enumerate(zip(shape.layers, segment.attention, strict=True)):
            if segment.fill:
                tokens += segment.fill[index]
            passes = max(_passes(tokens, segment.queries), 1)
            # what a method took out of the cache is no more in the context of the forwards that follow
            most = passes * (positions if layer.window is None else min(positions, layer.window - 1))
            cached[index] = min(cached[index] + segment.forwards * tokens, most)
        yield tuple(tokens * shape.kv_bytes(index) for index, tokens in enumerate(cached))


def keeps_all(shape: ModelShape, segments: Iterable[Segment]) -> bool:
    """Whether a row's caches held no less than all that ran through the layers, and showed it to attention."""
    row = list(segments)
    return all(
        all(held >= all_of_it for held, all_of_it in zip(segment.held or derived, derived, strict=True))
        and all(met >= _least(segment, layer.window) for met, layer in zip(segment.keys, shape.layers, strict=False))
        for segment, derived in zip(row, cached_by_shape(shape, row), strict=True)
    )


def _least(segment: Segment, window: int | None) -> int:
    """Key positions that a layer of dense meets in the first of the forwards."""
    before = segment.context - segment.queries
    return segment.queries + (before if window is None else min(before, window - 1))


def _positions(segment: Segment) -> int:
    """Positions of the row after the last of the forwards."""
    return segment.context + (segment.forwards - 1) * segment.queries


def _weights(shape: ModelShape, segment: Segment) -> float:
    """Weight bytes of one forward of the segment."""
    layers = 0.0
    reads = zip(shape.layers, segment.attention_reads, segment.mlp_reads, segment.mlp, strict=True)
    for index, (layer, attention, mlp, tokens) in enumerate(reads):
        attended, fed = segment.work("attention", index), segment.work("mlp", index)
        of_attention = attention * layer.attention_read(segment.attention[index] * segment.rows)
        of_mlp = mlp * layer.mlp_read(tokens * segment.rows)
        layers += of_attention if attended is None or attended.bytes is None else attended.bytes
        layers += of_mlp if fed is None or fed.bytes is None else fed.bytes
    head = segment.work("head", 0)
    of_head = segment.head_reads * shape.head.read(segment.head * segment.rows)
    of_head = of_head if head is None or head.bytes is None else head.bytes
    around = shape.other.read(segment.queries * segment.rows) / segment.rows
    return layers + of_head + around + sum(work.bytes for work in segment.extra.values())


def _passes(tokens: int, queries: int) -> int:
    """How often a layer read its cache: once for any part of the queries."""
    return -(-tokens // queries)
