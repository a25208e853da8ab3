"""Int8, weights only: round to nearest, one scale for each output."""

from dataclasses import dataclass

from harness.contract.families import Family
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.computing import ComputesLinears


@dataclass(frozen=True, kw_only=True)
class Int8WeightOnly(ComputesLinears):
    """Round the weights of the linear layers to eight bits, without training or calibration; activations stay.

    How: each output's weights are divided by their absmax over 127 and rounded to nearest. The scale is a float32 for
    each output, so a weight takes 8 bits and 32 more for each row.

    Paper: none of its own: round to nearest, the control of "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", Frantar et al., arXiv:2210.17323, at eight bits.

    Limits: it multiplies what dense multiplies, on a quarter of a float32 model's bytes, so that what it can save is
    the time of few tokens and memory. A product over packed weights is taken for the numbers of tokens at which it is
    faster here than the model's own; for others a CPU makes floats of them as it goes, so that memory and decoding are
    real and a prompt takes dense's time. Where none is faster, the rounded weights are multiplied as floats: the same
    answers, in dense's time and memory, and the record calls the saving simulated.

    Reference: rounded weights equal the formula, each within half a scale; every product agrees with the dense one over
    the same numbers.
    """

    name = "int8-weight-only"
    family = Family.QUANTIZATION
    paper = "arXiv:2210.17323"

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products with packed weights, and the float product over the rounded ones."""
        from harness.model.weights.formats import NumberFormat
        from harness.model.weights.weight_only import computations

        return computations(layer, device, NumberFormat(8))
