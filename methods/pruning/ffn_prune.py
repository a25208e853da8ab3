"""FFN prune: take out the neurons of every MLP whose weights are smallest."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Lt

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Indices

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class FfnPrune(Method):
    """Take out the neurons of the MLPs whose weights are smallest, without calibration or training.

    How: a neuron is one feature inside the MLP: a row of the gate, where there is one, a row of the expansion and a
    column of the way back. Its score is the product of the L2 norms of these, which bounds what it can add to the
    stream for an input of unit length, and which is the same for all scalings that leave the model as it is. In each
    layer the ``ratio`` of neurons with the least scores goes. They are really removed: the layers that are left are
    smaller dense ones.

    Paper: "LLM-Pruner: On the Structural Pruning of Large Language Models", Ma et al., arXiv:2305.11627, with the L2
    magnitude as importance and its production as the aggregation over the coupled weights.

    Parameters:
        ratio: share of the neurons that go; 0 leaves the model dense.
        multiple: as many fewer go that the rest is a multiple of this, which kernels like.
        layers: in these decoder layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.

    Limits: weights alone do not say which neurons the inputs excite. Attention and its cache stay as they are.

    Deviations: LLM-Pruner's own choice is by first-order importance, leaves the first and last layers alone and is
    followed by training; this is its magnitude baseline.

    Reference: tested on small random models of every supported layout: the model computes what the dense one computes
    with the columns of these neurons set to zero, and a neuron's score is the formula's in double precision.
    """

    name = "ffn-prune"
    family = Family.PRUNING
    spans_devices = True
    paper = "arXiv:2305.11627"
    examples = ({"ratio": 0.25}, {"ratio": 0.5}, {"ratio": 0.75})
    neutral = {"ratio": 0}

    ratio: Annotated[float, Ge(0), Lt(1)] = 0.25
    multiple: Annotated[int, Ge(1)] = 8
    layers: Indices = ()

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse layers that are not there, and MLPs that do not consist of neurons."""
        from harness.model.units import neurons_of

        super().check_model(model, below)
        for layer in self._layers(model):
            neurons_of(model, layer)

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Run the model without the chosen neurons."""
        from harness.model.reshape import Keep, narrowed
        from harness.model.units import neurons_of

        layers = self._layers(model) if self.ratio else []
        return narrowed(model, {layer: Keep(neurons=self._kept(neurons_of(model, layer))) for layer in layers})

    def _layers(self, model: "Decoder") -> list[int]:
        return list(self.layers) or [block.index for block in model.live]

    def _kept(self, weights: "Mapping[Any, torch.Tensor]") -> list[int]:
        """The neurons that stay in a layer, by the weights of each role, [neurons, width]."""
        import torch

        norms = [torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32) for weight in weights.values()]
        scores = torch.stack(norms).prod(0)  # [neurons]
        kept = ceil(round(len(scores) * (1 - self.ratio), 6) / self.multiple) * self.multiple
        return scores.argsort(descending=True, stable=True)[:kept].tolist()
