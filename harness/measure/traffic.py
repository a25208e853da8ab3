"""Bytes from a trace: what a memory-bound step must at least read and write.

Weights are read once per pass and shared by the rows of the batch; keys and values are read for the positions
before a forward's own and written for its own; embeddings are one row per token. Activations are left out,
and fused attention is assumed: scores never leave the chip.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from harness.measure.segment import Segment
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


def traffic(shape: ModelShape, segments: Iterable[Segment]) -> Traffic:
    """Bytes that the forwards of a row moved, padding included."""
    weights = 0.0
    kv = embedding = 0
    for segment in segments:
        weights += segment.forwards * _weights(shape, segment)
        kv += _kv(shape, segment)
        embedding += segment.forwards * segment.queries * shape.embedding_bytes
    return Traffic(weights, kv, embedding)


def kv_cache_bytes(shape: ModelShape, segments: Iterable[Segment]) -> int:
    """Bytes of a row's cache of keys and values when its sequence ends, for the longest of its sequences.

    A layer caches what ran through it: 2 Hk dh numbers for each token and pass. A sliding-window layer keeps
    its last w - 1 positions of each pass.
    """
    largest = 0
    cached = [0] * len(shape.layers)  # tokens in each layer's cache
    for segment in segments:
        if segment.phase != "decode":
            cached = [0] * len(shape.layers)  # another sequence begins
        for index, (layer, tokens) in enumerate(zip(shape.layers, segment.attention, strict=True)):
            filled = segment.fill[index] if segment.fill else 0
            passes = max(_passes(tokens + filled, segment.queries), 1)
            # what a method took out of the cache is no more in the context of the forwards that follow
            positions = segment.context + (segment.forwards - 1) * segment.queries
            cached[index] = min(cached[index] + segment.forwards * (tokens + filled), passes * positions)
            if layer.window is not None:
                cached[index] = min(cached[index], passes * (layer.window - 1))
        largest = max(largest, sum(tokens * shape.kv_bytes(index) for index, tokens in enumerate(cached)))
    return largest


def _weights(shape: ModelShape, segment: Segment) -> float:
    """Weight bytes of one forward of the segment."""
    reads = zip(shape.layers, segment.attention_reads, segment.mlp_reads, segment.mlp, strict=True)
    layers = sum(
        attention * (layer.attention.bytes + layer.expansion.bytes)
        + mlp * (layer.mlp.bytes + (layer.experts.hit_bytes(tokens * segment.rows) if layer.experts else 0))
        for layer, attention, mlp, tokens in reads
    )
    around = segment.head_reads * shape.head.bytes + shape.other.bytes / segment.rows
    return layers + around + segment.auxiliary_bytes


def _kv(shape: ModelShape, segment: Segment) -> int:
    """KV bytes of the segment's forwards: earlier positions are read once per pass, own ones written."""
    own = segment.forwards * segment.queries
    moved = 0
    for index, tokens in enumerate(segment.attention):
        earlier = max(segment.attended(index, shape.layers[index].window) - own, 0)
        positions = _passes(tokens, segment.queries) * earlier + segment.forwards * tokens
        moved += positions * shape.kv_bytes(index)
    filled = sum(tokens * shape.kv_bytes(index) for index, tokens in enumerate(segment.fill))
    return moved + segment.forwards * filled


def _passes(tokens: int, queries: int) -> int:
    """How often a layer read its cache: once for any part of the queries."""
    return -(-tokens // queries)
