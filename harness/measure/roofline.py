"""The least time that a machine could take: per component, the slower of its arithmetic and its memory traffic.

T = sum_k max(F_k / P, B_k / W) with P the dense peak of the data type and W the memory bandwidth (Williams et al.,
"Roofline", 2009). A lower bound ("speed of light"): no launch costs, perfect kernels, causal attention, weights and
keys and values alone as traffic.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from harness.measure.accelerators import Accelerator
from harness.measure.extra import Work
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape
from harness.measure.traffic import cache_traffic


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds by component, of one row alone on the machine."""

    attention: float = 0.0
    cache: float = 0.0
    mlp: float = 0.0
    head: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All components, one after another."""
        return self.attention + self.cache + self.mlp + self.head + self.rest


def roofline(shape: ModelShape, segments: Iterable[Segment], machine: Accelerator, dtype: str) -> Bound:
    """The bound of a row's forwards.

    Args:
        shape: the model that ran; its weights' bytes count.
        segments: the row's trace, without padding; every pass is taken to read the weights for itself.
        machine: whose peaks to use.
        dtype: data type of the arithmetic, such as "bfloat16".
    """
    attention = cache = mlp = head = rest = 0.0

    def slower(flops: float, moved: float) -> float:
        return max(flops / machine.peak(dtype), moved / machine.bandwidth)

    row = list(segments)
    for segment, moved in zip(row, cache_traffic(shape, row), strict=True):
        n, times = segment.queries, segment.forwards
        for index, layer in enumerate(shape.layers):
            attended, fed = segment.attention[index], segment.mlp[index]  # tokens per forward
            own, fed_own = segment.work("attention", index), segment.work("mlp", index)
            read = -(-attended // n) * layer.attention_read(attended)
            attention += times * slower(*_of(own, layer.attention.macs * attended, read, segment.rows))
            read = -(-fed // n) * layer.mlp_read_alike(fed)
            mlp += times * slower(*_of(fed_own, layer.mlp.macs * fed, read, segment.rows))
            products = segment.work("scores", index)
            scores = layer.pair_macs * segment.causal_pairs(layer.window) * attended / n
            scores = 2 * (scores if products is None else times * products.macs)
            if own is None:
                scores += 2 * layer.expansion.macs * segment.attended(index, layer.window) * attended / n
            cache += slower(scores, moved[index])
        reads = max(1, -(-segment.head // n)) * shape.head.read(segment.head) if segment.head else 0
        head += times * slower(*_of(segment.work("head", 0), shape.head.macs * segment.head, reads, segment.rows))
        added = sum(work.macs for work in segment.extra.values()) + shape.other.macs * n
        filled = sum(tokens * shape.kv_bytes(index) for index, tokens in enumerate(segment.fill))
        weights = sum(work.bytes for work in segment.extra.values()) * segment.rows
        around = weights + shape.other.read(n) + n * shape.embedding_bytes + filled
        rest += times * slower(2 * added, around)
    return Bound(attention, cache, mlp, head, rest)


def _of(work: Work | None, macs: int, read: float, rows: int) -> tuple[float, float]:
    """FLOPs and bytes of a layer's part: as counted, else by the shape."""
    if work is None:
        return 2 * macs, read
    return 2 * work.macs, read if work.bytes is None else work.bytes * rows


def dollars(seconds: float, usd_per_hour: float) -> float:
    """What so many seconds of an accelerator cost at a price per hour."""
    return seconds * usd_per_hour / 3600


def energy_bound(seconds: float, machine: Accelerator) -> float | None:
    """Joules at full power for that long, an upper bound for this many seconds; None without a stated power."""
    return None if machine.tdp is None else seconds * machine.tdp
