"""Hard attention: in the layers that bear it best, a token reads the keys of its highest scores alone."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from harness.contract.facts import Savings
from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class HardAttention(InLayers, OnText):
    """Let a token read the keys with its highest scores alone, in the layers where that raises the loss least.

    How: all products of queries and keys are computed; of each query the best stay, the others are left out of the
    softmax. Layers take it one after the other, each time the one with which the loss on the calibration text is least.

    Paper: "AxFormer: Accuracy-driven Approximation of Transformers for Faster, Smaller and more Accurate NLP Models",
    Nagarajan et al., arXiv:2010.03688.

    Parameters:
        top: keys that a token reads at least; texts that are no longer are as dense.
        share: the share of the keys before a token that it reads, if that is more; 1 leaves the model dense.
        count: layers that take it, where none are named; 0 leaves the model dense.
        layers: in exactly these decoder layers (``layers=3/4/7``, counted from 0).

    Limits: nothing is saved: all scores are computed, and what is left out is masked. Its use is to show how few keys a
    layer needs.

    Deviations: the paper fine-tunes each model that it tries and stops where the loss rises; here nothing is trained,
    and the number of layers is a parameter.

    Reference: outputs equal the product with all but the highest scores masked, in double precision. The paper's tables
    have not been reproduced.
    """

    name = "hard-attention"
    paper = "arXiv:2010.03688"
    savings = Savings.SIMULATED
    examples = tuple({"top": top, "count": 2, "samples": 2, "length": 32} for top in (4, 2, 1))
    neutral = {"count": 0, "samples": 2, "length": 32}

    top: Annotated[int, Ge(1)] = 32
    share: Annotated[float, Interval(gt=0, le=1)] = 0.01
    count: Annotated[int, Ge(0)] = 4
    layers: Indices = ()
    samples: Annotated[int, Ge(1)] = 4

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse more layers than there are."""
        super().check_model(model, below)
        if not self.layers and self.count > len(self.chosen(model)):
            raise MethodError(f"{self.name}: count={self.count}, and {len(self.chosen(model))} layers read all keys")

    def sweeps_on(self, model: "Decoder") -> int:
        """Every layer is tried each time."""
        from harness.model.sparse_attention.greedy import forwards

        return 0 if self.layers else forwards(len(self.chosen(model)), self.count)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the layers.

        Returns facts alone: ``layers``, in the order in which they were taken, and ``losses`` before and after each.
        """
        from functools import partial

        from harness.model.sparse_attention.greedy import greedy

        self.check_model(model)
        if self.layers or not self.count:
            return Prepared(facts={"layers": list(self.layers)})
        windows = list(self.windows(model, study))
        taken = greedy(model, windows, self.chosen(model), self.count, partial(self._on, model))
        return Prepared(facts={"layers": list(taken.layers), "losses": list(taken.losses)})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with hard attention in the layers that were chosen."""
        return self._on(model, prepared.facts["layers"])

    def _on(self, model: "Decoder", layers: "Collection[int]") -> AbstractContextManager[None]:
        from harness.model.sparse_attention.hard import hardened

        return hardened(model, layers, count=self.top, share=self.share, name=self.label)
