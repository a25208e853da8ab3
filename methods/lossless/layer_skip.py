"""Layer skip: the first layers draft, the whole model verifies, and what the first layers did is not done again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.lossless.drafting import DraftingByPart

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class LayerSkip(DraftingByPart):
    """Draft with the first layers and the head, and verify the draft with the others.

    How: a draft is written token after token by the first ``exit`` layers, the final norm and the head, on the cache
    in which the text is. The verification takes their keys, values and states from the draft, runs them on the last
    guess alone, and all other layers on every guess in one forward. What agrees with the whole model is kept, with its
    own next token after it. A cycle of ``draft`` guesses reads the weights of draft * exit + layers layers.

    Paper: "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding", Elhoushi et al., arXiv:2404.16710.

    Parameters:
        exit: layers that draft, from the first one on.
        draft: guesses for each verification, at most; 0 guesses nothing and is dense.

    Limits: greedy generations of one row. It is worth something on models that were trained to be left early, as the
    bundled one and the paper's own were; the first layers of others guess next to nothing. FLOPs rise, by the heads
    of the drafts and by what is rejected, while reads of the weights fall. Scoring is dense's.

    Deviations: the paper trains with layer dropout and a loss at every exit; here a model is taken as it is.

    Reference: the text is dense's; forwards and passes over the weights are those of a count by hand, and the drafts
    those of the model with its other layers removed.
    """

    name = "layer-skip"
    paper = "arXiv:2404.16710"
    examples = tuple({"exit": layers, "draft": 2} for layers in (3, 2, 1))
    neutral = {"exit": 1, "draft": 0}

    exit: Annotated[int, Ge(1)] = 4
    draft: Annotated[int, Ge(0)] = 4

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse an exit behind which there is no layer."""
        super().check_model(model, below)
        last = len(model.anatomy.blocks) - 1
        if self.exit > last:
            raise MethodError(f"layer-skip: exit={self.exit} is out of range for this model; from 1 to {last}")

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Verify what the first layers guess."""
        from harness.model.speculation.part import drafted_by_part
        from harness.model.speculation.verification import speculated

        self.check_model(model)
        behind = range(self.exit, len(model.anatomy.blocks))
        with drafted_by_part(model, blocks=behind) as draft, speculated(model, draft, self.draft, self.name):
            yield
