"""What methods share that rewrite a model's weights so that its answers stay the same."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import MethodError
from harness.model.weights.computations import HasKernels
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class RewritesWeights(Method, mixin=True):
    """A method that gives a model other weights of the same answers; it goes below methods that use the weights."""

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse methods whose weights, kernels or layers the rewriting would undo or miss."""
        super().check_below(below)
        for part in below:
            rounds = part.family == Family.QUANTIZATION and not isinstance(part, RewritesWeights)
            if isinstance(part, Zeros | HasKernels) or part.directs_layers or rounds:
                raise MethodError(
                    f"{self.name} rewrites the weights that {part.name} uses: write {self.name}+{part.name}"
                )

    def require_float32(self, model: "Decoder") -> None:
        """Refuse weights in half precision, for a method that is exact.

        Raises:
            MethodError: with what would be right.
        """
        dtype = model.autocast or model.module.dtype
        if dtype.itemsize < 4:
            raise MethodError(
                f"{self.name} is exact in float32, and the model runs in {dtype}: run with --model_args dtype=float32"
            )
