"""HQQ: rounding in groups, with zero points between codes that are fitted to the weights alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.study import Needs
from harness.core.errors import MethodError
from harness.model.weights.computing import ComputesLinears
from harness.model.weights.in_groups import NEUTRAL, FewBits
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.formats import NumberFormat
    from harness.model.weights.linear import ReplacementLayer, Site


@dataclass(frozen=True, kw_only=True)
class Hqq(FewBits, ComputesLinears):
    """Round the weights of the linear layers in groups, with zero points that fit the weights best, without data.

    How: scales are those of ``int4-weight-only``. Its zero points, whole numbers, are where the search begins; then the
    error's sparse part and the zero points that fit the rest are found in turns, so that the sum of |w - w'|^0.7 falls,
    in which a few large errors count less than many small ones. The zero point lies between codes, as a float16: a
    group of 64 takes 4 bits a weight and 32 more, 4.5 bits a weight.

    Paper: "Half-Quadratic Quantization of Large Machine Learning Models", Badri and Shaji, 2023.

    Parameters:
        iterations: of the search, at most; 1 is rounding to nearest.

    Limits: of the kernels for four bits torch's alone take zero points between codes, in bfloat16; elsewhere the
    rounded weights are multiplied as floats, and the record calls the saving simulated. A weight of zero does not stay
    zero, so that methods that prune are refused below it. A model whose file had float offsets too (GGUF's Q4_1) is
    rounded to what it was in the same groups, which is no comparison: take another ``group``, or ``shuffle`` below it.

    Deviations: the paper's code stops where the mean error over a whole weight no longer falls and keeps the last zero
    points; here every group keeps those of its iterations that erred least. Scales are float16 too.

    Reference: one iteration is ``int4-weight-only`` with groups of 64; the error of no group rises.
    """

    name = "hqq"
    family = Family.QUANTIZATION
    paper = "https://mobiusml.github.io/hqq_blog/"
    examples = ({"group": 16}, {"group": 16, "iterations": 1}, {"bits": 3, "group": 16})
    neutral = {"bits": NEUTRAL}

    group: Annotated[int, Ge(0)] = 64
    iterations: Annotated[int, Ge(1)] = 20

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse methods that prune: their zeros would be filled."""
        super().check_below(below)
        for part in below:
            if isinstance(part, Zeros):
                raise MethodError(
                    f"{self.name} has zero points between codes, which would fill the zeros of {part.name}: take "
                    f"{part.name}+int4-weight-only"
                )

    @property
    def needs(self) -> Needs:
        """As little text as there can be: the weights alone are looked at."""
        return Needs(documents=1)

    @property
    def number(self) -> "NumberFormat":
        """The number format of the weights."""
        return replace(super().number, zero="float16")

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Fit the zero points.

        Returns tensors: by a linear layer's name, its zero points [out, groups]; facts: ``error``, the sum of
        |w - w'|^0.7 in parts of that of rounding to nearest.
        """
        from harness.model.weights.half_quadratic import fitted_zeros

        zeros, first, last = {}, 0.0, 0.0
        for site, _ in self.declared_layers(model, ()):
            zero, errors = fitted_zeros(site.weight, self.number, self.iterations)
            zeros[site.name] = zero.cpu()
            first, last = first + errors[0], last + errors[-1]
        return Prepared(zeros, {"error": last / first if first else 1.0})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with the weights rounded so."""
        from harness.model.weights.linear import installed

        return installed(self._replacements(model, prepared))

    def _replacements(self, model: "Decoder", prepared: Prepared) -> "Iterator[tuple[Site, ReplacementLayer]]":
        from harness.model.weights.half_quadratic import with_zeros
        from harness.model.weights.kernel_plan import computation
        from harness.model.weights.weight_only import computations

        for site, layer in self.declared_layers(model, ()):
            rounded = with_zeros(site.weight, self.number, prepared.tensors[site.name])
            ways = computations(layer, str(model.device), self.number, rounded)
            yield site, computation(self, model, site, layer, ways).make(site.weight, site.bias)
