"""Parameters that methods which set weights to zero share: how many zeros, and of which shape."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.method import Method
from harness.contract.parameters import Pattern, Sparsity
from harness.core.errors import MethodError
from harness.model.weights.computations import ChoosesKernels, Computations, Layer
from harness.model.weights.mixins import OnLinears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.contract.decoder import Decoder
    from harness.model.weights.linear import Site


@dataclass(frozen=True, kw_only=True)
class Zeros(Method, ChoosesKernels, mixin=True):
    """A method that sets weights to zero, which a kernel may skip where they are two of each four neighbours.

    Parameters:
        sparsity: the share of weights that go, from 0 to below 1; one for all layers, or one for each
            (``sparsity=0.5/0.6/0.7/0.7``).
        pattern: the shape of the zeros: "unstructured"; "2:4" (two of each four neighbours, sparsity 0.5); "4x1",
            "16x1" or "64x1" (blocks of 4, 16 or 64 outputs of one input, which ``block-sparse`` can skip).
    """

    sparsity: Sparsity = (0.5,)
    pattern: Pattern = "unstructured"

    def check(self) -> None:
        """Refuse a 2:4 pattern with a sparsity that is not one half."""
        super().check()
        if self.pattern == "2:4" and set(self.sparsity) - {0, 0.5}:
            raise MethodError(f"{self.name}: pattern=2:4 has sparsity=0.5, not {'/'.join(map(str, self.sparsity))}")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse sparsities that are not one for each layer."""
        super().check_model(model, below)
        self.sparsity_by_layer(model)

    def sparsity_by_layer(self, model: "Decoder") -> list[float]:
        """The sparsity of each layer of the dense model.

        Raises:
            MethodError: several are given, and not one for each layer.
        """
        from harness.model.weights.pruning import sparsity_by_layer

        return sparsity_by_layer(model, self.sparsity)

    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The linear layers that have zeros in the pattern 2:4."""
        if self.pattern != "2:4" or not isinstance(self, OnLinears):
            return []
        shares = self.sparsity_by_layer(model)
        chosen = [site for site in self.sites(model) if site.layer is not None and shares[site.layer]]
        return [(site, Layer.of(site.weight, 0.5)) for site in chosen]

    def computations(self, layer: Layer, device: str) -> Computations:
        """Torch's product for 2:4, and the dense product over the zeros."""
        from harness.model.weights.semi_structured import computations

        return computations(layer, device)
