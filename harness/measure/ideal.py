"""Idealized runtime: a row's trace and a host's cost profile give seconds, by arithmetic alone.

What a request would take alone on the host with nothing in its way (Narayanan et al., arXiv:2305.02440, extended to
depth that changes): the sum over its forwards of what each executed part costs. Batches are taken apart, padding is
left out, so two methods are compared at batch size 1 whatever ran the evaluation.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from harness.measure.profile import CostProfile, Costs
from harness.measure.segment import Segment, unpadded
from harness.measure.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Runtime:
    """Idealized seconds by component.

    Attributes:
        fixed: what every forward costs around its layers, one row of the head included.
        layers: attention and MLP of the layers that ran.
        head: head rows beyond the first of a forward, exit checks among them.
        router: routers and exit classifiers.
        kv_fill: keys and values projected for tokens that did not run a layer.
    """

    fixed: float = 0.0
    layers: float = 0.0
    head: float = 0.0
    router: float = 0.0
    kv_fill: float = 0.0

    @property
    def total(self) -> float:
        """All components."""
        return self.fixed + self.layers + self.head + self.router + self.kv_fill

    def parts(self) -> dict[str, float]:
        """The components by name."""
        return asdict(self)

    def __add__(self, other: "Runtime") -> "Runtime":
        added = other.parts()
        return Runtime(**{name: seconds + added[name] for name, seconds in self.parts().items()})


def ideal_runtime(profile: CostProfile, shape: ModelShape, segments: Iterable[Segment]) -> Runtime:
    """Idealized seconds of a row.

    Args:
        profile: of the model that the layers are charged by: dense, or the method's own.
        shape: the model's windows.
        segments: the row's trace as it ran.
    """
    total = Runtime()
    for segment in unpadded(segments):
        if segment.queries:
            total += _segment(profile, shape, segment)
    return total


def _segment(profile: CostProfile, shape: ModelShape, segment: Segment) -> Runtime:
    decode = segment.phase == "decode" and segment.queries == 1
    costs = profile.decode if decode else profile.prefill
    n, times = segment.queries, segment.forwards
    # a check at an exit is a call of its own
    rows = segment.head - segment.checks
    head = max(rows - 1, 0) * costs.head_seconds(n) + segment.checks * profile.head.seconds(1)
    router = segment.router * profile.router.base + segment.router_macs * profile.router.per_token
    fill = sum(profile.fill.seconds(tokens) for tokens in segment.fill)
    return Runtime(
        fixed=times * costs.fixed_seconds(n),
        layers=_attention(costs, shape, segment) + times * _mlp(costs, segment),
        head=times * head,
        router=times * router,
        kv_fill=times * fill,
    )


def _attention(costs: Costs, shape: ModelShape, segment: Segment) -> float:
    """Seconds of all attentions in all forwards of the segment."""
    n, total = segment.queries, 0.0
    # layers that ran on as many tokens with the same window cost the same
    alike = Counter(
        (tokens, layer.window) for tokens, layer in zip(segment.attention, shape.layers, strict=True) if tokens
    )
    for (tokens, window), layers in alike.items():
        calls = sum(costs.attention_seconds(part) for part in _passes(tokens, n))
        seen = segment.causal_pairs(window) * tokens / n
        total += layers * (segment.forwards * calls + costs.attention_pair * seen)
    return total


def _mlp(costs: Costs, segment: Segment) -> float:
    """Seconds of all MLPs in one forward of the segment."""
    return sum(
        layers * sum(costs.mlp_seconds(part) for part in _passes(tokens, segment.queries))
        for tokens, layers in Counter(segment.mlp).items()
    )


def _passes(tokens: int, queries: int) -> list[int]:
    """Tokens of each call of a module: passes over all queries, and one over the rest."""
    whole, rest = divmod(tokens, queries)
    return [queries] * whole + [rest] * (rest > 0)
