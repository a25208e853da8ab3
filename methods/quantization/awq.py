"""AWQ: rounding in groups, with the channels that activations make important scaled up first."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.prepared import Prepared
from harness.model.scaled_channels import ScalesChannels
from harness.model.weights.in_groups import NEUTRAL, InGroups

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.linear import Site

_CLIP, _SCALE = "clip.", "scale."


@dataclass(frozen=True, kw_only=True)
class Awq(InGroups, ScalesChannels):
    """Round the weights of the linear layers in groups, after scaling up the channels that activations make important.

    How: on calibration text the mean magnitude of every channel that linear layers read is taken. Weights are
    multiplied by s = mean|x|^r for each channel, and what writes the channel is divided by it: the gain of a norm, the
    rows of the values before attention's output, those of the MLP's expansion before the way back. Of r = 0, 0.05, ...,
    0.95 the one is taken with which rounded weights change the output of attention, of the MLP, or of the linear layer
    itself least. Then every group's range is cut, to 55 percent at most, where that changes its part of the output
    least; those of queries and keys are left. Rounding and kernels are those of ``int4-weight-only``.

    Paper: "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", Lin et al.,
    arXiv:2306.00978.

    Parameters:
        grid: how many r are tried, the first of which is 0: no scales.
        clip: whether ranges are cut.

    Limits: with groups of queries (GQA) the values' channels have several readers each, and attention's output is not
    scaled; nor is the way back of an MLP without a gate, unless its activation is ReLU. Models whose linear layers read
    no norm are refused. What it saves is what ``int4-weight-only`` saves.

    Deviations: scales are compared on the first 4,096 tokens, in whole windows, where the paper's code takes all;
    magnitudes are of all tokens, and so is the error of cutting, for which the code takes 512. Calibration is the run's
    text. What several kinds of linear layer read at once is compared by the output of the whole decoder layer.

    Reference: before rounding the answers are dense's; without scales and cuts it is ``int4-weight-only``; of no module
    that was looked at the error is more.
    """

    name = "awq"
    family = Family.QUANTIZATION
    paper = "arXiv:2306.00978"
    calibrates_layers = True
    examples = ({"group": 16, "grid": 4, "samples": 2, "length": 48},)
    neutral = {"bits": NEUTRAL}
    inner = True

    grid: Annotated[int, Ge(1)] = 20
    clip: bool = True

    @property
    def sweeps(self) -> int:
        """Once to look at what is read, once to pass it on, and the search on a part of the text."""
        return 2 + -(-self.grid * 4096 // max(self.samples * self.length, 4096))

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Search scales and cuts.

        Returns tensors: ``scale.`` and the name of a linear layer, the scales of what it reads, and those beside it;
        ``clip.`` and its name, the largest magnitude of each group; facts: ``tokens``, how many were looked at, and
        ``error``, the squared change of the inspected outputs in parts of that of rounding to nearest, a mean.

        Raises:
            MethodError: activations or weights that are not finite.
        """
        from harness.model.scale_search import search

        rounded = [site for site, _ in self.declared_layers(model, ())]
        if not rounded:
            return Prepared()
        searched = search(
            model,
            list(self.windows(model, study)),
            self.feeds(model),
            rounded,
            self.number,
            grid=self.grid,
            clip=self.clip,
        )
        tensors = {_SCALE + name: scale for name, scale in searched.scales.items()}
        tensors |= {_CLIP + name: most for name, most in searched.clips.items()}
        error = fmean([last / first if first else 1.0 for first, last in searched.errors.values()] or [1.0])
        return Prepared(tensors, {"tokens": searched.tokens, "error": error})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with the scaled and rounded weights."""
        from harness.model.channel_scales import computed_scaled
        from harness.model.scale_search import clipped

        def cut(site: "Site", weight: "Tensor") -> "Tensor":
            most = prepared.tensors.get(_CLIP + site.name)
            return weight if most is None else clipped(weight, most)

        scales = {name.removeprefix(_SCALE): scale for name, scale in prepared.tensors.items()}
        return computed_scaled(self, model, self.feeds(model), scales, finish=cut)
