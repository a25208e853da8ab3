"""Int8, dynamic: weights in eight bits once, activations in eight bits as they come."""

from dataclasses import dataclass

from harness.contract.families import Family
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.computing import ComputesLinears


@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(ComputesLinears):
    """Compute the linear layers in eight bits, without training or calibration.

    How: weights are quantised symmetrically to int8 once, with one absmax scale per output row; activations as they
    come, with one absmax scale per token. The products are summed exactly in 32 bits and scaled back. As scales of
    activations are per token, massive activations of one token (attention sinks) cost the others nothing, and a row of
    a batch gives the same whatever the other rows are.

    Paper: "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", Dettmers et al., arXiv:2208.07339,
    whose vector-wise scales these are.

    Limits: one scale for all channels of a token: channels that are large on every token cost precision (a median
    relative error of 5 percent in a product with six channels fifty times the others, against 1 percent without).
    The product is an integer one on a CPU and on CUDA, for the layers and numbers of tokens at which that is faster
    there than the model's own product; elsewhere the rounded numbers are multiplied as floats:
    the same answers, and the record calls the saving simulated. ``--kernel`` asks for one by name.

    Deviations: the paper keeps columns with outliers in 16 bits; here all are in 8, and activations are rounded
    symmetrically.

    Reference: the product equals, to float rounding, the formula computed in double precision; its error against the
    dense product is 1 percent on normal values and is the same for every token when one is 200 times the others.
    """

    name = "int8-dynamic"
    family = Family.QUANTIZATION
    paper = "arXiv:2208.07339"

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products of int8, and the float product over the rounded numbers."""
        from harness.model.weights import int8

        return int8.computations(layer, device)
