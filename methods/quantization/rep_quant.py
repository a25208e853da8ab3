"""RepQuant: steps of every channel become one step, by what is folded into the norm, and then all is in eight bits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.model.scaled_channels import ScalesChannels
from harness.model.weights.computations import Computations, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.channel_scales import Feed
    from harness.model.weights.steps import Samples

_BITS = 8
_SCALE, _SHIFT = "scale.", "shift."


@dataclass(frozen=True, kw_only=True)
class RepQuant(ScalesChannels):
    """Compute the linear layers in eight bits, after giving all channels that a norm writes one step size.

    How: on calibration text every channel of a norm's output gets a step s_j of its own: that of the percentile, of
    .999, .9999 and .99999, as the end of its range that errs least. The channel is divided by s_j over the mean of all
    steps, which goes into the norm's gain, and the linear layers that read it multiply. Of a norm with a bias, the
    middle of the channel's range is taken off too, and put back by the biases of the linear layers. Then weights are
    in int8 with one scale per output and activations with one per token, as in ``int8-dynamic``.

    Paper: "RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale
    Reparameterization", Li et al., arXiv:2402.05628.

    Parameters:
        softmax: bits in which attention's probabilities are rounded, to powers of the root of two; 0 leaves them.

    Limits: all of the difference between channels goes into the weights, as in ``smooth-quant:alpha=1``, and where it
    is large it is lost there: with six channels fifty times the others a product errs by 5 percent, as without, and by
    1 with ``smooth-quant``. For kernels the same holds as for ``int8-dynamic``. Rounded probabilities are multiplied as
    floats: they show what rounding costs, and save nothing. Models whose linear layers read no norm are refused.

    Deviations: of the paper's parts, learned clipping and the reconstruction of weights are left out, which need
    training and second moments. Activations have a scale per token, taken as they come, where the paper has one for a
    whole layer; with zero at the middle of its range, as these products need it. A query's probabilities are rounded
    in parts of its largest one, where the paper has one scale for a layer.

    Reference: before rounding the answers are dense's; a percentile's error is the least of the three; probabilities
    stay in their order, and at four bits sum to one within 5 percent in the mean.
    """

    name = "rep-quant"
    family = Family.QUANTIZATION
    paper = "arXiv:2402.05628"
    calibrates_layers = True
    examples = ({"samples": 2, "length": 48},)

    softmax: Annotated[int, Ge(0), Le(8)] = 0

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose linear layers read what no norm could scale, or whose attention cannot be replaced."""
        super().check_model(model, below)
        if self.softmax:
            from harness.model.attention import require_attendable

            require_attendable(model)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Take the steps of channels.

        Returns tensors: ``scale.`` and the name of a linear layer, the scales of what it reads, and those beside it;
        ``shift.`` and its name, what is taken off; facts: ``tokens``, how many were looked at.
        """
        from harness.model.channel_scales import calibrated
        from harness.model.weights.steps import Samples, steps

        shifts: dict[str, Tensor] = {}

        def scale(feed: "Feed", samples: "Samples") -> "Tensor":
            step, centre = steps(samples.value, _BITS, symmetric=not feed.can_shift)
            if feed.can_shift:
                shifts[_SHIFT + feed.name] = centre.cpu()
            return step / step.mean()

        windows = list(self.windows(model, study))
        scales, tokens = calibrated(model, windows, self.feeds(model), Samples, scale)
        return Prepared({_SCALE + name: each for name, each in scales.items()} | shifts, {"tokens": tokens})

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Run the scaled linear layers in eight bits, and attention with rounded probabilities if asked for."""
        from harness.model.attention import attending
        from harness.model.channel_scales import computed_scaled

        scales, shifts = (
            {name.removeprefix(kind): each for name, each in prepared.tensors.items() if name.startswith(kind)}
            for kind in (_SCALE, _SHIFT)
        )
        with ExitStack() as stack:
            stack.enter_context(computed_scaled(self, model, self.feeds(model), scales, shifts))
            if self.softmax:
                stack.enter_context(attending(model, self.attend, name=self.label))
            yield

    def attend(
        self,
        layer: int,
        q: "Tensor",
        k: "Tensor",
        v: "Tensor",
        mask: "Tensor | None",
        scale: float,
    ) -> "tuple[Tensor, int]":
        """The product with rounded probabilities; see ``harness.model.attention.Attention``."""
        from harness.model.log_attention import attention

        return attention(q, k, v, mask, scale, self.softmax)

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products of int8, and the float product over the rounded numbers."""
        from harness.model.weights import int8

        return int8.computations(layer, device)
