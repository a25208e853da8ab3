"""Self-speculation: the model without some of its layers or attentions drafts for the whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.lossless.drafting import DraftingByPart

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class SelfSpec(DraftingByPart, OnText):
    """Draft with the model without some of its layers, or of its attentions, and verify the draft with all of it.

    How: what is left out is chosen on calibration text, to make n L / (K E + L) large: n tokens that a verification
    would write if K guesses of a part of E layers agreed with the model as they do on that text, of a model of L
    layers. Layers are ranked by how often the model without that one alone agrees with the whole, and left out one more
    at a time; K is the best of 1 to ``draft``. The part drafts on the cache in which the text is. Up to the first
    layer that it leaves out, it does what the model does, and the verification takes that over.

    Paper: "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding", Zhang et al.,
    arXiv:2309.08168.

    Parameters:
        unit: what is left out: "block" (whole layers), or "attention".
        draft: guesses for each verification, at most; 0 guesses nothing and is dense.
        layers: leave out exactly these (``layers=5/6/9``, counted from 0), and make ``draft`` guesses.

    Limits: greedy generations of one row. Nothing is trained, so on a model that was not trained to be left early the
    best part may save nothing: the modelled speed-up is in the prepared state. The first attention, and the first with
    a sliding window, cannot go. FLOPs rise, while reads of the weights fall. Scoring is dense's.

    Deviations: the paper searches layers and attentions together by Bayesian optimisation of measured time, and ends a
    draft early where it is unsure; here one order of removal is searched, by modelled time, for drafts of one length.

    Reference: the text is dense's; the modelled speed-up equals a count by hand over the text.
    """

    name = "self-spec"
    paper = "arXiv:2309.08168"
    examples = tuple({"layers": layers, "draft": 2} for layers in ("2", "1/2", "1/2/3"))
    neutral = {"draft": 0}

    unit: Literal["block", "attention"] = "block"
    draft: Annotated[int, Ge(0)] = 6
    layers: Indices = ()
    samples: Annotated[int, Ge(1)] = 4
    length: Annotated[int, Ge(2)] = 256

    def check(self) -> None:
        """Refuse a layer that is named twice, and put them in order."""
        super().check()
        if len(set(self.layers)) < len(self.layers):
            raise MethodError(f"self-spec: layers={self.layers} names a layer twice")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse layers that the model does not have, or cannot draft without."""
        super().check_model(model, below)
        last = len(model.anatomy.blocks) - 1
        if self.layers and self.layers[-1] > last:
            raise MethodError(f"self-spec: there is no layer {self.layers[-1]}; the model's layers are 0 to {last}")

    def sweeps_on(self, model: "Decoder") -> int:
        """Once for each unit alone, and once for each number of them."""
        return 1 if self.layers else 2 * len(model.anatomy.blocks)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose what is left out.

        Returns facts alone: ``out`` by index, the length of a ``draft``, its modelled ``speedup``, how often the first
        guess was ``right`` and the ``share`` of the layers' weights that is read; unless ``layers`` chose, the same of
        all that were ``tried``.

        Raises:
            MethodError: the text is too short, or the model has no unit that can go.
        """
        from harness.model.speculation.choice import chosen_part
        from harness.model.speculation.part import measuring

        self.check_model(model)
        if self.layers or not self.draft:
            return Prepared(facts={"out": list(self.layers), "draft": self.draft})
        if len(model.live) <= len(measuring(model)):
            raise MethodError("self-spec: this model has no layer that a draft could leave out")
        windows = list(self.windows(model, study))
        best, tried = chosen_part(model, windows, self.unit, self.draft)
        return Prepared(facts={**asdict(best), "tried": [asdict(part) for part in tried]})

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Verify what the part guesses."""
        from harness.model.speculation.part import drafted_by_part
        from harness.model.speculation.verification import speculated

        out, draft = prepared.facts["out"], prepared.facts["draft"]
        parts = {"blocks" if self.unit == "block" else "attentions": out}
        with drafted_by_part(model, **parts) as part, speculated(model, part, draft, self.name):
            yield
