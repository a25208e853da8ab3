"""Mx: weights, and activations where asked for, in blocks that share a scale of eight bits (MXFP4 to MXFP8, NVFP4)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from harness.contract.families import Family
from harness.core.errors import MethodError
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.computing import ComputesLinears

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.prepared import Prepared
    from harness.model.weights.formats import NumberFormat


@dataclass(frozen=True, kw_only=True)
class Mx(ComputesLinears):
    """Round weights in microscaling formats: blocks of neighbouring inputs that share a scale of eight bits.

    How: each block of 32 inputs of an output is divided by a power of two and each weight becomes the nearest element,
    ties to the even code. The formats of the specification are ``element=e2m1`` (MXFP4), ``e2m3`` and ``e3m2`` (MXFP6),
    ``e4m3`` and ``e5m2`` (MXFP8) and ``int8`` (MXINT8). NVFP4 is ``element=e2m1,block=16,scale=e4m3``. A weight takes
    4.25, 6.25 or 8.25 bits, in NVFP4 4.5 and four bytes more for the whole weight. BCT is
    ``element=int4,block=64,activations=true,embedding=true,nonlinear=true`` (or ``int8``).

    Paper: "Microscaling Data Formats for Deep Learning", Rouhani et al., arXiv:2310.10537; "Blockwise Compression of
    Transformer-based Models without Retraining" (BCT), Dong et al., arXiv:2304.01483.

    Parameters:
        element: what a code stands for: a float of 4, 6 or 8 bits with so many exponent and mantissa bits, or an
            integer.
        block: neighbouring inputs that share a scale; it divides the inputs of every linear layer chosen.
        scale: the rule for a block's scale. "floor": the power of two of the largest element becomes that of the
            largest weight, which may saturate; "rceil": the least power of two with which nothing saturates; "e4m3": a
            float of eight bits, with a second scale for the whole weight (NVFP4).
        activations: what the chosen linear layers read is rounded in the same format, token by token.
        embedding: the rows of the embeddings too, of tokens and of learned positions.
        nonlinear: what norms of the residual stream, activation functions and attention's softmax give is rounded too;
            of softmax all keys of a query are one block.

    Limits: nothing is faster here: the values are multiplied as floats, and the record calls the saving simulated.
    Only integers that are rounded with their activations left alone have products over packed weights. Cards that
    multiply such blocks are of the Blackwell and MI350 generations, and no kernel for them is used. ``nonlinear`` needs
    a model without experts whose attention can be replaced, and leaves norms of single heads (Qwen 3) as they are.
    Where activations are rounded, float rounding that differs with the shape of a batch may turn a code into its
    neighbour, and logits differ by a percent between batches.

    Deviations: NVFP4's second scale of activations is each token's own, where libraries calibrate one for all. BCT
    shifts integers; a power-of-two scale is the same number. Its size, 7.988 times less than float32, is that of four
    bits with a byte for some 1,300 numbers; blocks of 64 give 7.76.

    Reference: the blocks of the specification; ties, saturation and both scale rules by hand; E4M3 and E5M2 equal
    torch's casts. No published number has been reproduced.
    """

    name = "mx"
    family = Family.QUANTIZATION
    paper = "arXiv:2310.10537"
    examples = (
        {"element": "int8", "block": 16, "activations": True, "embedding": True, "nonlinear": True},
        {"element": "e4m3", "block": 16, "scale": "rceil"},
        {"block": 16, "scale": "e4m3"},
    )

    element: Literal["e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8", "int4"] = "e2m1"
    block: Annotated[int, Ge(1)] = 32
    scale: Literal["floor", "rceil", "e4m3"] = "floor"
    activations: bool = False
    embedding: bool = False
    nonlinear: bool = False

    @property
    def number(self) -> "NumberFormat":
        """The number format of weights and activations."""
        from harness.model.weights.formats import NumberFormat

        if self.element == "int8" or self.element == "int4":
            return NumberFormat(int(self.element[3:]), self.block, scale=self.scale)
        bits = 1 + int(self.element[1]) + int(self.element[3])
        return NumberFormat(bits, self.block, element=self.element, scale=self.scale)

    def check_model(self, model: "Decoder", below: "tuple[Method, ...]" = ()) -> None:
        """Refuse a block that does not divide what is rounded, and parts whose outputs could not be."""
        super().check_model(model, below)
        widths = [layer.inputs for _, layer in self.declared_layers(model, below)]
        if self.embedding or self.nonlinear:
            widths.append(model.config.hidden_size)
        if self.nonlinear:
            from harness.model.attention import require_attendable
            from harness.model.weights.linear import sites
            from harness.model.weights.microscaling import require_activations

            require_attendable(model)
            require_activations(model)
            widths += [site.weight.shape[1] for site in sites(model)]  # norms and activation functions give them
        self._check_widths(widths)

    def _check_widths(self, widths: list[int]) -> None:
        try:
            self.number.check_inputs(widths)
        except MethodError as error:
            raise MethodError(str(error).replace("group=", "block=")) from None

    def computations(self, layer: Layer, device: str) -> Computations:
        """The float product over the rounded numbers; of integers alone the products with packed weights too."""
        from harness.model.weights.microscaling import computations

        return computations(layer, device, self.number, activations=self.activations)

    @contextmanager
    def attach(self, model: "Decoder", prepared: "Prepared") -> Iterator[None]:
        """Run the model on rounded numbers."""
        from harness.model.weights.microscaling import rounded_embeddings, rounded_outputs

        with ExitStack() as stack:
            stack.enter_context(super().attach(model, prepared))
            if self.embedding:
                stack.enter_context(rounded_embeddings(model, self.number))
            if self.nonlinear:
                stack.enter_context(rounded_outputs(model, self.number, self.label))
            yield
