"""Magnitude: zero the smallest weights."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Indices, Patterns, Sparsity
from harness.contract.parameters import Pattern as ZeroPattern
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Zero the smallest weights of each linear map of the layers: the control for pruning that looks at activations.

    How: in every map, the ``sparsity`` share of its weights with the least magnitude is set to zero. In a pattern of
    blocks, a block's score is the sum of its squared weights.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", Han et al., arXiv:1506.02626,
    without its retraining: the one-shot baseline of arXiv:2306.11695.

    Parameters:
        sparsity: the share of weights that go, from 0 to below 1; one for all layers, or one for each.
        pattern: the shape of the zeros: "unstructured", "2:4" (sparsity 0.5), "4x1" or "16x1".
        linears: names of the maps that are pruned, with wildcards (``linears=*.mlp.*``).
        layers: in these layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated.
    """

    name = "magnitude"
    family = Family.PRUNING
    paper = "arXiv:1506.02626"
    savings = Savings.SIMULATED
    swaps_linears = True
    examples: ClassVar = tuple({"sparsity": sparsity} for sparsity in (0.25, 0.5, 0.75))
    neutral: ClassVar = {"sparsity": 0}

    sparsity: Sparsity = (0.5,)
    pattern: ZeroPattern = "unstructured"
    linears: Patterns = ("*",)
    layers: Indices = ()

    def check(self) -> None:
        """Two of four is half."""
        if self.pattern == "2:4" and set(self.sparsity) - {0, 0.5}:
            raise MethodError(f"magnitude: pattern=2:4 has sparsity=0.5, not {'/'.join(map(str, self.sparsity))}")

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Run the model with zeros for its smallest weights."""
        from harness.model.weights.linear import sites
        from harness.model.weights.pruning import magnitude, sparsity_by_layer, without

        chosen = sites(model, self.linears, layers=self.layers)
        return without(chosen, magnitude(chosen, self.pattern, sparsity_by_layer(model, self.sparsity)), self.pattern)
