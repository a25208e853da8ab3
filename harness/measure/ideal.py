"""Idealized runtime: a row's trace and a host's cost profile give seconds, by arithmetic alone.

What a request would take alone on the host with nothing in its way (Narayanan et al., arXiv:2305.02440, extended to
depth that changes): the sum over its forwards of what each executed part costs. Batches are taken apart, padding is
left out, so two methods are compared at batch size 1 whatever ran the evaluation.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.core.errors import TraceError
from harness.measure.extra import FILL, Extra
from harness.measure.profile import CostProfile, Costs
from harness.measure.segment import WRITING, Segment, unpadded
from harness.measure.shape import ModelShape
from harness.results.costs import AddedCosts


@dataclass(frozen=True, slots=True)
class Runtime:
    """Idealized seconds by component.

    Attributes:
        fixed: what every forward costs around its layers, one row of the head included.
        layers: attention and MLP of the layers that ran.
        head: head rows beyond the first of a forward, exit checks among them.
        extra: what methods add, by kind: decisions of routers ("router"), of exit classifiers and what goes with exit
            checks by the head ("exit"), keys and values of tokens that did not run a layer ("fill").
    """

    fixed: float = 0.0
    layers: float = 0.0
    head: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All components."""
        return self.fixed + self.layers + self.head + sum(self.extra.values())

    def parts(self) -> dict[str, float]:
        """The components by name."""
        return {"fixed": self.fixed, "layers": self.layers, "head": self.head} | dict(self.extra)

    def __add__(self, other: "Runtime") -> "Runtime":
        kinds = dict.fromkeys((*self.extra, *other.extra))
        extra = {kind: self.extra.get(kind, 0.0) + other.extra.get(kind, 0.0) for kind in kinds}
        return Runtime(self.fixed + other.fixed, self.layers + other.layers, self.head + other.head, extra)


NOTHING_ADDED: Final = AddedCosts()


def ideal_runtime(
    profile: CostProfile, shape: ModelShape, segments: Iterable[Segment], added: AddedCosts = NOTHING_ADDED
) -> Runtime:
    """Idealized seconds of a row.

    Args:
        profile: of the model that the layers are charged by: dense, or the method's own.
        shape: the model's windows.
        segments: the row's trace as it ran.
        added: of what the method adds, measured in place; what it leaves out is charged by the profile.

    Raises:
        TraceError: the trace was stored without the calls of routers, or of exit checks, in it.
    """
    total = Runtime()
    for segment in unpadded(segments):
        if segment.queries:
            total += _segment(profile, shape, segment, added)
    return total


def decision_calls(segment: Segment, work: Extra) -> int:
    """Calls of a decision's modules in one forward. In an older trace, without them, a decode step calls once a token.

    Raises:
        TraceError: an older trace of a longer forward, whose router may have seen many tokens in a call.
    """
    if work.calls or not work.tokens:
        return work.calls
    if segment.phase == "decode" and segment.queries == 1:
        return work.tokens
    raise TraceError("this trace was stored without the calls of the routers in it: run again with --no_resume")


def check_calls(segment: Segment) -> int:
    """Calls of the head that check exits in one forward. Where an older trace has none, a token was checked in a call.

    Raises:
        TraceError: an older trace of a longer forward that scores or writes, whose checks may have seen many tokens.
    """
    if segment.check_calls or not segment.checks:
        return segment.check_calls
    if segment.queries == 1 or segment.phase == "prefill":  # of a prompt, its last token alone is checked
        return segment.checks
    raise TraceError("this trace was stored without the calls that check exits: run again with --no_resume")


def _segment(profile: CostProfile, shape: ModelShape, segment: Segment, added: AddedCosts) -> Runtime:
    costs = profile.decode if segment.phase in WRITING and segment.queries == 1 else profile.prefill
    n, times = segment.queries, segment.forwards
    # exits are checked in calls of their own, each of as many tokens as it checks
    rows = segment.head - segment.checks
    checking = check_calls(segment) * profile.head.base + segment.checks * profile.head.per_token
    head = max(rows - 1, 0) * costs.head_seconds(n) + checking
    return Runtime(
        fixed=times * costs.fixed_seconds(n),
        layers=_attention(costs, shape, segment) + times * _mlp(costs, segment),
        head=times * head,
        extra={kind: times * seconds for kind, seconds in _extra(profile, segment, added).items()},
    )


def _extra(profile: CostProfile, segment: Segment, added: AddedCosts) -> dict[str, float]:
    """Seconds of what is added in one forward, by kind; the head's own work in exit checks is not among them."""
    seconds = {kind: _decisions(profile, segment, work, added) for kind, work in segment.extra.items() if kind != FILL}
    if added.call is not None and segment.checks:
        checking = check_calls(segment) * added.check + segment.checks * added.check_token
        seconds["exit"] = seconds.get("exit", 0.0) + checking
    if segment.fill:
        seconds[FILL] = sum(_fill(profile, tokens, added) for tokens in segment.fill)
    return seconds


def _decisions(profile: CostProfile, segment: Segment, work: Extra, added: AddedCosts) -> float:
    """Seconds of the decisions of one kind in one forward."""
    calls = decision_calls(segment, work)
    if added.call is None:
        return calls * profile.router.base + work.macs * profile.router.per_token
    return calls * (added.call + added.position * segment.queries) + work.macs * added.mac


def _fill(profile: CostProfile, tokens: int, added: AddedCosts) -> float:
    """Seconds of one layer's keys and values for tokens that do not run it."""
    if added.fill is None:
        return profile.fill.seconds(tokens)
    return added.fill_call + added.fill * tokens if tokens else 0.0


def _attention(costs: Costs, shape: ModelShape, segment: Segment) -> float:
    """Seconds of all attentions in all forwards of the segment."""
    n, total = segment.queries, 0.0
    # layers that ran on as many tokens and met as many keys cost the same
    alike = Counter(
        (tokens, segment.executed_pairs(index, layer.window))
        for index, (tokens, layer) in enumerate(zip(segment.attention, shape.layers, strict=True))
        if tokens
    )
    for (tokens, pairs), layers in alike.items():
        of_token = pairs / (segment.forwards * n)
        calls = sum(costs.attention_seconds(part, of_token * part) for part in _passes(tokens, n))
        total += layers * segment.forwards * calls
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
