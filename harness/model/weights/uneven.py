"""Parameters that pruning methods share which may give each layer a sparsity of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from harness.contract.mixins import OnText
from harness.core.errors import MethodError
from harness.model.weights.mixins import OnLinears
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class Uneven(Zeros, OnLinears, OnText, mixin=True):
    """A pruning method that spreads its sparsity over the layers, evenly or not.

    Parameters:
        budget: "uniform": every layer loses the share that ``sparsity`` says; "owl": layers in which more weights stand
            out keep more, and all together lose that share (OWL, arXiv:2310.05175). A weight stands out whose
            |W| ||x|| in the dense model is more than ``outliers`` times the layer's mean.
        outliers: with ``budget=owl``, what a weight that stands out is a multiple of the mean by.
        spread: with ``budget=owl``, half of the distance between the layer that loses most and the one that loses
            least, as a share of weights.
    """

    budget: Literal["uniform", "owl"] = "uniform"
    outliers: Annotated[float, Gt(0)] = 5.0
    spread: Annotated[float, Ge(0)] = 0.08

    def check(self) -> None:
        """Refuse a budget that the sparsity or the pattern leaves no room for."""
        super().check()
        if self.budget == "uniform":
            return
        if len(self.sparsity) > 1:
            raise MethodError(f"{self.name}: budget=owl gives each layer its sparsity: give one in all, not several")
        if self.pattern == "2:4":
            raise MethodError(f"{self.name}: budget=owl moves zeros between layers, and pattern=2:4 has half in each")
        most = min(self.sparsity[0], 1 - self.sparsity[0]) / 2
        if self.spread >= most:
            raise MethodError(
                f"{self.name}: spread={self.spread:g} may leave a layer nothing to lose, or to keep, at "
                f"sparsity={self.sparsity[0]:g}: give a spread below {most:g}"
            )

    @property
    def budget_sweeps(self) -> int:
        """Sweeps over the dense model to see which weights stand out."""
        return 2 if self.budget == "owl" else 0

    def budgets(self, model: "Decoder", study: "Study") -> list[float]:
        """The sparsity of each layer of the dense model.

        Raises:
            MethodError: sparsities that do not fit the model, or activations that are not finite.
        """
        if self.budget == "uniform":
            return self.sparsity_by_layer(model)
        from harness.model.weights.owl import owl

        return owl(
            model,
            self.windows(model, study),
            self.sites(model),
            sparsity=self.sparsity[0],
            outliers=self.outliers,
            spread=self.spread,
        )
