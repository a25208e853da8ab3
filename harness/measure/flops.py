"""FLOPs from a trace: one multiply-accumulate is two, and only matrix products count.

Linear layers, query-key and probability-value products and the head count; norms, softmax, rotary embedding and
activations do not (under one percent). Attention has two conventions. *Executed*: every query against every
key position in the tensor, the full rectangle, which is what eager and CPU kernels multiply and what a
dispatcher counts. *Causal*: the pairs that the mask lets through, which is what a fused kernel needs at
least.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from harness.measure.segment import Segment
from harness.measure.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs by component.

    Attributes:
        attention_linear: query, key, value and output projections.
        attention_scores: query-key and probability-value products.
        mlp: the MLP's projections.
        head: the language-model head, early-exit checks included.
        other: linears around the layers.
        extra: what methods added, by kind: routers ("router"), exit classifiers ("exit"), keys and values projected
            for tokens that did not run a layer ("fill"), and what methods charge.
    """

    attention_linear: int = 0
    attention_scores: int = 0
    mlp: int = 0
    head: int = 0
    other: int = 0
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All components."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """The components by name."""
        named = ("attention_linear", "attention_scores", "mlp", "head", "other")
        return {name: getattr(self, name) for name in named} | dict(self.extra)


def unknown_flops(shape: ModelShape, segments: Iterable[Segment]) -> str | None:
    """Why it is not known what some forwards multiplied; None where it is."""
    operators = sorted({name for segment in segments for name in segment.uncounted})
    if shape.uncounted is not None or not operators:
        return shape.uncounted
    return (
        f"no formula counts {', '.join(operators)}, which ran: Decoder.charge, or register_flop_formula of "
        "torch.utils.flop_counter, says what an operator multiplies"
    )


def executed_flops(shape: ModelShape, segments: Iterable[Segment]) -> Flops:
    """FLOPs that the running code multiplied, padding included: 2 n lin + 2 H (dk + dv) n c in a layer.

    Here n tokens run the layer over c key positions, as its attention met them, lin is its linears' parameters, and H
    heads have keys of width dk and values of width dv.
    """
    return _flops(shape, segments, Segment.rectangle)


def causal_flops(shape: ModelShape, segments: Iterable[Segment]) -> Flops:
    """FLOPs with attention counted by causal pairs, n c - n (n - 1) / 2 for the last n of c positions.

    Where a layer ran on a part of the tokens, each is charged with the mean over all of them.
    """

    def pairs(segment: Segment, layer: int, window: int | None) -> int:
        return min(segment.causal_pairs(window), segment.rectangle(layer, window))  # a cache may have evicted keys

    return _flops(shape, segments, pairs)


def _flops(shape: ModelShape, segments: Iterable[Segment], pairs: Callable[[Segment, int, int | None], int]) -> Flops:
    """Sum over layers; ``pairs`` gives the query-key pairs of a layer that every query ran, by its index and window."""
    linear = scores = mlp = head = other = 0
    extra = Counter[str]()
    for segment in segments:
        runs = 2 * segment.forwards  # FLOPs of a multiply-accumulate in each forward
        met: dict[int | None, int] = {}  # pairs per head; layers of one window met the same, unless keys were read
        for index, layer in enumerate(shape.layers):
            attended, fed = segment.attention[index], segment.mlp[index]
            kind = index if segment.keys else layer.window
            if kind not in met:
                met[kind] = pairs(segment, index, layer.window)
            if (work := segment.work("attention", index)) is not None:
                linear += runs * work.macs
            else:
                linear += runs * layer.attention.macs * attended
                if layer.expansion.macs:
                    positions = segment.attended(index, layer.window) * attended // segment.queries
                    linear += 2 * layer.expansion.macs * positions
            if (work := segment.work("scores", index)) is not None:
                scores += runs * work.macs
            else:
                scores += 2 * layer.pair_macs * met[kind] * attended // segment.queries
            work = segment.work("mlp", index)
            mlp += runs * (layer.mlp.macs * fed if work is None else work.macs)
        work = segment.work("head", 0)
        head += runs * (shape.head.macs * segment.head if work is None else work.macs)
        other += runs * shape.other.macs * segment.queries
        for name, added in segment.extra.items():
            extra[name] += runs * added.macs
    return Flops(linear, scores, mlp, head, other, dict(extra))
