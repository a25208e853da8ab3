"""The work that ran: it differs from dense where the method declares it, and the formulas count what PyTorch counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.contract.facts import Phase, Savings
from harness.core.errors import TraceError
from harness.measure.audit import audit
from harness.measure.flops import executed_flops, unknown_flops
from harness.measure.shape import ModelShape
from harness.measure.traffic import traffic
from harness.model.weights.savings import is_said_by_layers, saves, savings
from harness.results.audit import audit_doubt
from harness.testing.outcome import Failed, Skipped
from harness.testing.serve import TEXTS, Answers, generate, identical, score, score_context_first
from harness.testing.subject import Subject, on

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.measure.segment import Segment


@dataclass(frozen=True)
class _Served:
    """A few requests of both kinds, batched where the method allows it, as the model stands.

    Attributes:
        continued: texts scored context first, where the method changes nothing while a text is read.
    """

    shape: ModelShape
    scored: list[Answers]
    written: list[Answers]
    continued: list[Answers]

    @classmethod
    def by(cls, decoder: "Decoder", subject: Subject) -> "_Served":
        batches = [TEXTS[:3]] if subject.stack.batchable else [[text] for text in TEXTS[:3]]
        scored = [score(decoder, batch) for batch in batches]
        written = [generate(decoder, batch, steps=subject.steps) for batch in batches]
        with decoder.scored(subject.stack.manner):
            continued = [score_context_first(decoder, text) for text in TEXTS[:3] if subject.stack.only_decodes]
        return cls(ModelShape.of(decoder), scored, written, continued)

    def segments(self, *phases: str) -> list["Segment"]:
        try:
            rows = [row for answers in (*self.scored, *self.written, *self.continued) for row in answers.segments]
        except TraceError as error:
            raise Failed(f"its work cannot be charged to the rows of a batch: {error}") from None
        return [segment for row in rows for segment in row if segment.phase in phases or not phases]

    def cost(self) -> tuple[int, int]:
        """FLOPs, and bytes of weights and cache moved."""
        segments = self.segments()
        if (reason := unknown_flops(self.shape, segments)) is not None:
            raise Failed(f"its work is not known: {reason}")
        moved = traffic(self.shape, segments)
        # rounded, because the rows of a batch share the bytes of weights in fractions
        return executed_flops(self.shape, segments).total, round(moved.weights) + moved.kv


def affects_its_phases(subject: Subject) -> None:
    """Scoring and generating both differ from dense, in answers or in work, or phases says which does not."""
    if subject.stack.is_dense:
        raise Skipped("the baseline changes nothing")
    for family, decoder in subject.each():
        dense = _Served.by(decoder, subject)
        with subject.attached(decoder):
            method = _Served.by(decoder, subject)
        with on(family):
            _require_phases(subject, dense, method)


def _require_phases(subject: Subject, dense: _Served, method: _Served) -> None:
    # what is loaded beside the layers, as a model that drafts, changes no forward of theirs
    shapes = ((shape.layers, shape.head, shape.other) for shape in (method.shape, dense.shape))
    reshaped = next(shapes) != next(shapes)
    work = {phase: method.segments(phase) != dense.segments(phase) for phase in ("score", "prefill", "decode")}
    scores = reshaped or work["score"] or not all(map(identical, method.scored, dense.scored))
    if scores != (Phase.PREFILL in subject.stack.phases):
        raise Failed(
            "scoring a text is as dense, but phases names the prefill"
            if not scores
            else "scoring a text is not as dense, but phases leaves the prefill out"
        )
    if not (reshaped or any(work.values()) or not all(map(identical, method.written, dense.written))):
        raise Failed("generating is as dense, but phases does not leave it out")
    # what is exact may show in neither, as a draft that is never asked for
    if method.continued and not subject.stack.exact and not (reshaped or _differ(method.continued, dense.continued)):
        raise Failed(
            "scored context first, its continuations are as dense, so no scored task would show it; act where "
            "ForwardContext.decoding is set, whatever its kind"
        )
    decodes = reshaped or work["decode"]
    if Phase.DECODE not in subject.stack.phases and decodes:
        raise Failed("its decode steps do other work than dense, but phases leaves them out")
    if Phase.DECODE in subject.stack.phases and (work["prefill"] or work["score"]) and not decodes:
        raise Failed("its decode steps run as dense, but phases names them")


def _differ(answers: list[Answers], expected: list[Answers]) -> bool:
    pairs = list(zip(answers, expected, strict=True))
    return any(own.segments != other.segments for own, other in pairs) or not all(identical(*pair) for pair in pairs)


def saves_what_it_declares(subject: Subject) -> None:
    """The trace shows less work than dense where savings are real, and no less where they are not."""
    for family, decoder in subject.each():
        dense = _Served.by(decoder, subject).cost()
        with subject.attached(decoder):
            method = _Served.by(decoder, subject)
            saved = savings(subject.stack, decoder)
            of_parts = [saves(part, decoder) for part in subject.stack.acting if not is_said_by_layers(part)]
        with on(family):
            cost = method.cost()
            if not method.segments():
                raise Failed("nothing was traced: the modules of the dense model never ran")
            # a stack is simulated as soon as one part is, while another part may take work away
            # what guesses save depends on the text, which random weights do not show: that they are verified is enough
            verifies = subject.drafts and bool(method.segments("verify"))
            if not verifies and (saved is Savings.REAL or Savings.REAL not in of_parts):
                _require_declared(saved, cost, dense)


def _require_declared(saved: Savings, cost: tuple[int, int], dense: tuple[int, int]) -> None:
    """Costs are FLOPs and bytes."""
    ratios = f"{cost[0] / dense[0]:.1%} of dense's FLOPs and {cost[1] / dense[1]:.1%} of its bytes"
    less = any(part < dense_part for part, dense_part in zip(cost, dense, strict=True))
    if saved is Savings.REAL and not less:
        raise Failed(f"it declares real savings, but what ran is {ratios}: it was never executed, or only masks")
    if saved is not Savings.REAL and less:
        raise Failed(f"its savings are {saved}, but it counts as {ratios}; only real savings may be counted")


def stronger_is_cheaper(subject: Subject) -> None:
    """From each of its examples to the next, FLOPs and bytes do not grow, and over all of them one shrinks."""
    if subject.savings is not Savings.REAL:
        raise Skipped(f"its savings are {subject.savings}")
    if subject.drafts:
        raise Skipped("what drafts save depends on the text that is written, which random weights do not show")
    examples = subject.examples
    if len(examples) < 2:
        raise Skipped("it gives fewer than two examples, so there is nothing to compare")
    for family, decoder in subject.each():
        costs = []
        for example in examples:
            with subject.attached(decoder, example), on(family):
                costs.append(_Served.by(decoder, subject).cost())
        for kind, values in zip(("FLOPs", "bytes moved"), zip(*costs, strict=True), strict=True):
            if list(values) != sorted(values, reverse=True):
                grown = ", ".join(f"{value:.4g}" for value in values)
                raise Failed(f"{family}: from mild to strong, its examples take {grown} {kind}")
        if costs[-1] == costs[0]:
            raise Failed(f"{family}: its strongest example costs what its mildest does")


def counts_what_runs(subject: Subject) -> None:
    """FLOPs by our formulas are those that PyTorch counts in the operators that ran, within a thousandth."""
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            ratio = audit(decoder, partial(_serve, decoder, subject)).ratio
            if audit_doubt(ratio):
                raise Failed(
                    f"PyTorch counts {ratio:.3f} times the FLOPs that the formulas give; a module that replaces a "
                    "linear layer declares what a token costs as macs_per_token"
                )


def _serve(decoder: "Decoder", subject: Subject) -> Iterable["Segment"]:
    return _Served.by(decoder, subject).segments()
