"""Fp8, dynamic: weights in eight-bit floats once, activations in eight-bit floats as they come."""

from dataclasses import dataclass

from harness.contract.families import Family
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.computing import ComputesLinears


@dataclass(frozen=True, kw_only=True)
class Fp8(ComputesLinears):
    """Compute the linear layers in floats of eight bits, without training or calibration.

    How: weights are divided by one scale per output row, activations by one per token as they come, such that the
    largest of each becomes 448, the largest number of E4M3 (four exponent bits, three of mantissa); both are rounded
    to nearest, ties to even. Products are summed in float32 and scaled back. A row of a batch gives the same whatever
    the other rows are.

    Paper: "FP8 Formats for Deep Learning", Micikevicius et al., arXiv:2209.05433, whose format this is; scales are per
    token and per output, as vLLM and compressed-tensors have them for dynamic fp8.

    Limits: a mantissa of three bits rounds to 3 percent of a number, whatever its size: int8 is closer on values
    that are alike in size, and this on values that are not. The product runs in eight bits only on a card of compute
    capability 8.9 or more, for the layers and numbers of tokens at which that is faster there than the model's own
    product; elsewhere the rounded numbers are multiplied as floats: the same answers up to rounding,
    and the record calls the saving simulated. The card's product gives bfloat16.

    Reference: rounding equals torch's own casts, and the product the formula in double precision, to float rounding.
    """

    name = "fp8"
    family = Family.QUANTIZATION
    paper = "arXiv:2209.05433"

    def computations(self, layer: Layer, device: str) -> Computations:
        """Torch's product of fp8, and the float product over the rounded numbers."""
        from harness.model.weights.fp8 import computations

        return computations(layer, device)
