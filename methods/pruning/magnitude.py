"""Magnitude: zero the smallest weights."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.model.weights.mixins import OnLinears
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Magnitude(Zeros, OnLinears):
    """Zero the smallest weights of each linear layer: the control for pruning that looks at activations.

    How: in every linear layer, the ``sparsity`` share of its weights with the least magnitude is set to zero. In a
    pattern of blocks, a block's score is the sum of its squared weights.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", Han et al., arXiv:1506.02626,
    without its retraining: the one-shot baseline of arXiv:2306.11695.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated.
    """

    name = "magnitude"
    family = Family.PRUNING
    spans_devices = True
    paper = "arXiv:1506.02626"
    savings = Savings.SIMULATED
    examples = tuple({"sparsity": sparsity} for sparsity in (0.25, 0.5, 0.75))
    neutral = {"sparsity": 0}

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Run the model with zeros for its smallest weights."""
        from harness.model.weights.pruning import magnitude, without

        sites = self.sites(model)
        return without(model, sites, magnitude(sites, self.pattern, self.sparsity_by_layer(model)), self.pattern)
