"""Int4, weights only: round to nearest in groups of inputs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import MethodError
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.computing import ComputesLinears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.contract.decoder import Decoder
    from harness.model.weights.formats import NumberFormat
    from harness.model.weights.linear import Site

NEUTRAL: Final = 16
"""Bits that leave a weight as it is."""


@dataclass(frozen=True, kw_only=True)
class Int4WeightOnly(ComputesLinears):
    """Round the weights of the linear layers to four bits in groups, without training or calibration.

    How: a group of neighbouring inputs of an output shares a scale and a zero point. The scale is the group's range,
    which holds zero, over 15, as a float16; the zero point is the code of zero. Each weight becomes the nearest of the
    16 values. A weight takes 4 bits, and a group of 128 takes 20 more: 4.16 bits a weight. Activations stay.

    Paper: none of its own: round to nearest, the floor that "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", Frantar et al., arXiv:2210.17323, and all after it are measured against.

    Parameters:
        bits: of a weight, 2 to 8; 16 leaves the weights as they are.
        group: neighbouring inputs that share a scale; it divides the inputs of every linear layer chosen.
        symmetric: scales without zero points: of 4 bits, -7 to 7 times absmax over 7.

    Limits: it multiplies what dense multiplies, so that what it can save is the time of few tokens and memory. A
    product over packed weights is taken for the numbers of tokens at which it is faster here than the model's own; for
    others a CPU makes floats of them as it goes, so that memory and decoding are real and a prompt takes dense's time.
    Where none is faster, the rounded weights are multiplied as floats: the same answers, in dense's time and memory,
    and the record calls the saving simulated. Products are for four and eight bits: the harness's own on a CPU, for
    groups of whole eights of inputs, and torch's for four bits and models in bfloat16. A model that was in four bits
    once, in groups of the same size, is rounded to what it was: no comparison.

    Reference: rounded weights equal the formula, each within half a scale; a weight on a grid of the format comes back
    as it was; every product agrees with the dense one over the same numbers.
    """

    name = "int4-weight-only"
    family = Family.QUANTIZATION
    paper = "arXiv:2210.17323"
    examples = ({"group": 16}, {"group": 16, "symmetric": True}, {"bits": 3, "group": 16})
    neutral = {"bits": NEUTRAL}

    bits: int = 4
    group: Annotated[int, Ge(1)] = 128
    symmetric: bool = False

    def check(self) -> None:
        """Refuse bits that no format has."""
        super().check()
        if self.bits != NEUTRAL and not 2 <= self.bits <= 8:
            raise MethodError(f"{self.name}: bits={self.bits} is not valid: give 2 to 8, or {NEUTRAL} for no rounding")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a group that does not divide the inputs of a linear layer."""
        super().check_model(model, below)
        if layers := self.declared_layers(model, below):
            self.number.check_inputs([layer.inputs for _, layer in layers])

    @property
    def number(self) -> "NumberFormat":
        """The number format of the weights."""
        from harness.model.weights.formats import NumberFormat

        return NumberFormat(self.bits, self.group, self.symmetric, scale="float16")

    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The chosen linear layers; none where their weights stay as they are."""
        return [] if self.bits == NEUTRAL else super().declared_layers(model, below)

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products with packed weights, and the float product over the rounded ones."""
        from harness.model.weights.weight_only import computations

        return computations(layer, device, self.number)
