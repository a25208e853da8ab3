"""Int8, dynamic: weights in eight bits once, activations in eight bits as they come."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.families import Family
from harness.model.weights.computations import Computations, HasKernels, Layer
from harness.model.weights.mixins import OnLinearsAndHead

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(OnLinearsAndHead, HasKernels):
    """Compute the linear layers in eight bits, without training or calibration.

    How: weights are quantised symmetrically to int8 once, with one absmax scale per output row; activations as they
    come, with one absmax scale per token. The products are summed exactly in 32 bits and scaled back. As scales of
    activations are per token, massive activations of one token (attention sinks) cost the others nothing, and a row of
    a batch gives the same whatever the other rows are.

    Paper: "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", Dettmers et al., arXiv:2208.07339,
    whose vector-wise scales these are.

    Limits: one scale for all channels of a token: channels that are large on every token cost precision (a median
    relative error of 5 percent in a product with six channels fifty times the others, against 1 percent without).
    The product is an integer one only on a CPU, and for layers on which that is at least 10 percent faster there than
    the model's own product, at one token and 128 alike; elsewhere the rounded numbers are multiplied as floats: the
    same answers, and the record calls the saving simulated. ``--kernel`` asks for one by name.

    Deviations: the paper keeps columns with outliers in 16 bits; here all are in 8, and activations are rounded
    symmetrically.

    Reference: the product equals, to float rounding, the formula computed in double precision; its error against the
    dense product is 1 percent on normal values and is the same for every token when one is 200 times the others.
    """

    name = "int8-dynamic"
    family = Family.QUANTIZATION
    paper = "arXiv:2208.07339"

    def computations(self, layer: Layer, device: str) -> Computations:
        """Torch's products of int8, and the float product over the rounded numbers."""
        from harness.model.weights import int8

        return int8.computations(device)

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Let the chosen linear layers run in eight bits."""
        from harness.model.weights.kernel_plan import computation
        from harness.model.weights.linear import installed

        chosen = ((site, computation(self, model, site, Layer.of(site.weight))) for site in self.sites(model))
        return installed((site, each.make(site.weight, site.bias)) for site, each in chosen)
