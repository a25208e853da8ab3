"""What a method adds to the model's own work, timed where it happens: whole decisions, and whole key-value fills.

A decision costs more than its router's linear layers: the input is pooled, the output is read back, the device is
waited for. Engines say where they decide and fill (``Decoder.adding``), and that is timed while requests are served.
Of a method that does not say it, every call of its ``auxiliaries`` is timed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from harness.contract.decoder import Added, Decoder
from harness.measure.clock import Clock, Mark, between, mark
from harness.measure.extra import FILL
from harness.measure.profile import nonnegative_fit
from harness.measure.segment import Segment
from harness.results.costs import AddedCosts

if TYPE_CHECKING:
    from torch import nn

    from harness.results.stats.conventions import Floats


ALIKE: Final = 0.01
"""Relative differences of calls below which they count as alike."""
LEAST_TIMED: Final = 3
"""Requests from which one can be left out of the prices and still be predicted by several."""


class AddedTimer:
    """Times what the attached methods add in a ``with`` block. The head has costs of its own and is left out."""

    def __init__(self, model: Decoder, clock: Clock) -> None:
        self._model, self._clock = model, clock
        self._undo = ExitStack()
        self._depth = 0  # decisions and fills that are open: a router's call lies within a decision
        self._spans: list[tuple[Added, Mark, Mark]] = []

    def __enter__(self) -> Self:
        for added in self._model.auxiliaries:
            self._watch(added.module, partial(self._begin, "fill" if added.kind == FILL else "decision"), self._end)
        self._watch(self._model.anatomy.head, self._pause, self._resume)
        self._model.timer = self._span
        return self

    def __exit__(self, *_: object) -> None:
        self._model.timer = None
        self._undo.close()

    def seconds(self) -> dict[Added, float]:
        """Seconds of all decisions and of all fills since this was last asked."""
        total = defaultdict[Added, float](float)
        for what, begun, ended in self._spans:
            total[what] += between(begun, ended)
        self._spans = []
        return dict(total)

    @contextmanager
    def _span(self, what: Added) -> Iterator[None]:
        self._begin(what)
        try:
            yield
        finally:
            self._end()

    def _begin(self, what: Added, *_: Any) -> None:
        if not self._depth:
            self._what, self._begun = what, mark(self._clock)
        self._depth += 1

    def _end(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._spans.append((self._what, self._begun, mark(self._clock)))

    def _pause(self, *_: Any) -> None:
        if self._depth:
            self._spans.append((self._what, self._begun, mark(self._clock)))

    def _resume(self, *_: Any) -> None:
        if self._depth:
            self._begun = mark(self._clock)

    def _watch(self, module: "nn.Module", before: Callable[..., None], after: Callable[..., None]) -> None:
        self._undo.callback(module.register_forward_pre_hook(before).remove)
        self._undo.callback(module.register_forward_hook(after).remove)


def fitted(traces: Sequence[Sequence[Segment]], timed: Sequence[Mapping[Added, float]]) -> AddedCosts:
    """What a call, a multiplication, a position, an exit check, a token in it and a fill take, from requests.

    Args:
        traces: what ran for each request.
        timed: its seconds of decisions and of fills.
    """
    works = np.array([[*_decided(segments), *_filled(segments)] for segments in traces])  # [requests, 7]
    seconds = np.array([[each.get("decision", 0.0), each.get("fill", 0.0)] for each in timed])  # [requests, 2]
    costs = _prices(works, seconds)
    return AddedCosts(
        **dict(zip(("call", "mac", "position", "check", "check_token"), costs[:5], strict=True))
        if (seconds[:, 0] > 0).any()
        else {},
        **dict(zip(("fill_call", "fill"), costs[5:], strict=True)) if (seconds[:, 1] > 0).any() else {},
        error=_left_out(works, seconds),
    )


def _prices(works: "Floats", seconds: "Floats") -> "Floats":
    """Costs of each kind of work, [7], from works [requests, 7] and seconds of decisions and fills, [requests, 2]."""
    works, costs = works.copy(), np.zeros(works.shape[1])
    for calls, parts in ((0, 1), (3, 4), (5, 6)):  # of routers, of exit checks, of fills
        of_calls, of_parts = works[:, calls], works[:, parts]
        if np.allclose(of_parts * of_calls.sum(), of_calls * of_parts.sum(), rtol=ALIKE):
            works[:, parts] = 0.0  # calls that are all alike cost by the call: the share of their parts is not known
    for kind, columns in enumerate((slice(0, 5), slice(5, 7))):
        happened = (seconds[:, kind] > 0) & works[:, columns].any(1)
        if happened.any():
            costs[columns] = nonnegative_fit(works[happened, columns], seconds[happened, kind])
    return costs


def _left_out(works: "Floats", seconds: "Floats") -> float | None:
    """Mean relative error of each request's seconds by the prices of the others; None of fewer than three requests."""
    timed = np.flatnonzero((seconds.sum(1) > 0) & works.any(1))
    if len(timed) < LEAST_TIMED:
        return None
    errors = []
    for index in timed:
        others = timed[timed != index]
        predicted = works[index] @ _prices(works[others], seconds[others])
        errors.append(abs(float(predicted / seconds[index].sum()) - 1))
    return float(np.mean(errors))


def _filled(segments: Sequence[Segment]) -> "Floats":
    """Calls that fill a layer's keys and values, and the tokens that they fill."""
    calls = sum(each.forwards * sum(tokens > 0 for tokens in each.fill) for each in segments)
    return np.array([calls, sum(each.forwards * sum(each.fill) for each in segments)], dtype=np.float64)


def _decided(segments: Sequence[Segment]) -> "Floats":
    """Calls of routers, their multiply-accumulates, the positions they were called at; calls that check exits by the
    head, and tokens in them.
    """
    total = np.zeros(5)
    for each in segments:
        decisions = [work for kind, work in each.extra.items() if kind != FILL]
        calls, macs = sum(work.calls for work in decisions), sum(work.macs for work in decisions)
        total += each.forwards * np.array([calls, macs, calls * each.queries, each.check_calls, each.checks])
    return total
