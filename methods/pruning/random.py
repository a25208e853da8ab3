"""Random: zero weights that are drawn by lot."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.model.weights.mixins import OnLinears
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Random(Zeros, OnLinears):
    """Zero weights of each linear layer that are drawn by lot: the control for every method that chooses them.

    How: in every linear layer, the ``sparsity`` share of its weights, or of its blocks in a pattern of blocks, is
    drawn and set to zero. A method that keeps no more quality than this, at the same sparsity and pattern, chooses
    nothing.

    Paper: the random baseline of "What is the State of Neural Network Pruning?", Blalock et al., arXiv:2003.03033.

    Parameters:
        seed: of the lot; the weights that a linear layer loses depend on it and on the layer's place alone.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated. One seed
    is one lot: several show how far they lie apart.
    """

    name = "random"
    family = Family.PRUNING
    spans_devices = True
    paper = "arXiv:2003.03033"
    savings = Savings.SIMULATED
    examples = tuple({"sparsity": sparsity} for sparsity in (0.25, 0.5, 0.75))
    neutral = {"sparsity": 0}

    seed: Annotated[int, Ge(0)] = 0

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Run the model with zeros for the weights that are drawn."""
        from harness.model.weights.pruning import drawn, without

        sites = self.sites(model)
        return without(model, sites, drawn(sites, self.pattern, self.sparsity_by_layer(model), self.seed), self.pattern)
