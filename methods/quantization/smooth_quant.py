"""SmoothQuant: what is large in activations goes into the weights, and then both are in eight bits."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from harness.contract.families import Family
from harness.contract.prepared import Prepared
from harness.model.scaled_channels import ScalesChannels
from harness.model.weights.computations import Computations, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.channel_scales import Feed
    from harness.model.weights.observers import AbsMax

_LEAST = 1e-5


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(ScalesChannels):
    """Compute the linear layers in eight bits, with channels that are large in all activations made smaller first.

    How: on calibration text the largest magnitude of each channel j that a norm gives is taken, over all tokens. The
    channel is divided by s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), the weights' maximum being over all linear layers
    that read it, and these multiply by s_j: the norm's gain and bias take the division, so that nothing runs for it.
    Then weights are in int8 with one scale per output and activations with one per token, as in ``int8-dynamic``.

    Paper: "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", Xiao et al.,
    arXiv:2211.10438.

    Parameters:
        alpha: how much of an activation's size goes into the weights: 0 levels the weights alone, 1 the activations.

    Limits: what attention's output and the MLP's way back read is not smoothed, as no norm writes it. Models whose
    linear layers read no norm, such as those with norms after the branches alone, are refused. For kernels the same
    holds as for ``int8-dynamic``.

    Deviations: the paper calibrates on 512 windows of the Pile; here the text is the run's calibration text.
    Activations have a scale per token (the paper's O1 setting), and products in attention stay in floats.

    Reference: before rounding the answers are dense's; with six channels fifty times the others the error of a product
    falls from 5 percent to 1, and on normal values it stays.
    """

    name = "smooth-quant"
    family = Family.QUANTIZATION
    paper = "arXiv:2211.10438"
    calibrates_layers = True
    examples = ({"samples": 2, "length": 48},)

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Take the scales of channels.

        Returns tensors: by the name of a linear layer, the scales of what it reads, and those beside it; facts:
        ``tokens``, how many were looked at.
        """
        from harness.model.channel_scales import calibrated
        from harness.model.weights.observers import AbsMax

        scales, tokens = calibrated(model, list(self.windows(model, study)), self.feeds(model), AbsMax, self._scale)
        return Prepared(scales, {"tokens": tokens})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the scaled linear layers in eight bits."""
        from harness.model.channel_scales import computed_scaled

        return computed_scaled(self, model, self.feeds(model), prepared.tensors)

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products of int8, and the float product over the rounded numbers."""
        from harness.model.weights import int8

        return int8.computations(layer, device)

    def _scale(self, feed: "Feed", largest: "AbsMax") -> "Tensor":
        """What the channels of a feed are divided by, [channels]."""
        weights = feed.largest_weights.clamp(min=_LEAST)
        return (largest.value**self.alpha / weights ** (1 - self.alpha)).clamp(min=_LEAST)
