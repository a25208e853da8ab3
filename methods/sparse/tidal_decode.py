"""TidalDecode: two layers choose the keys that a token reads, and the layers after them read these."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from annotated_types import Ge

from harness.contract.facts import Phase
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.sparse_attention.reads_lists import ReadsLists

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

CHOOSING: Final = (2 / 32, 13 / 32)
"""Where the paper's choosing layers are among its model's 32: the third one, and the fourteenth."""


@dataclass(frozen=True, kw_only=True)
class TidalDecode(ReadsLists):
    """Let two layers choose the keys that a token reads, and all layers after them read these and no others.

    How: the prompt is read in full. For a token that is written, the first layers read all keys; the first choosing
    layer reads all and keeps the places of the highest products of the query with keys; the layers after it read the
    keys at these places in their own caches, until another layer reads all and chooses anew.

    Paper: "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention", Yang et al.,
    arXiv:2410.05076.

    Parameters:
        top: keys that a token reads; texts that are no longer are as dense.
        choose: the layers that read all keys and choose (``choose=2/13``, counted from 0). Left out, they are where the
            paper has them in a model of 32 layers: 1 and 5 of 12.
        share: "head" keeps a list for each head of keys, "layer" one for all of them, which a CPU reads fastest.

    Limits: the cache stays whole. In choosing layers the products with keys are computed once more than in dense.
    Savings are real where the kernel for lists of keys runs, in float32 on a CPU with a C compiler; elsewhere the same
    keys are read under a mask and the record calls it simulated.

    Deviations: heads that share keys share their list, by the highest of their products; the paper's models share none.
    One list for all heads is by the highest probability, and is not of the paper.

    Reference: logits equal those of dense attention under the mask of the lists, to rounding, on every supported
    layout. The paper's tables have not been reproduced.
    """

    name = "tidal-decode"
    paper = "arXiv:2410.05076"
    phases = frozenset({Phase.DECODE})
    examples = tuple({"top": top, "choose": (0,)} for top in (6, 4, 2))
    neutral = {"top": 1 << 30}

    top: Annotated[int, Ge(1)] = 256
    choose: Indices = ()
    share: Literal["head", "layer"] = "head"

    def chosen(self, model: "Decoder") -> tuple[int, ...]:
        """The layers that choose or read lists: from the first that chooses on.

        Raises:
            MethodError: a layer cannot choose, or none is left that reads what was chosen.
        """
        full, choosing = super().chosen(model), self._choosing(model)
        if wrong := [layer for layer in choosing if layer not in full]:
            raise MethodError(
                f"{self.name}: layer {wrong[0]} is none that reads all keys; choose among {', '.join(map(str, full))}"
            )
        layers = tuple(layer for layer in full if layer >= choosing[0])
        if set(layers) <= set(choosing):
            raise MethodError(f"{self.name}: no layer after layer {choosing[0]} reads what is chosen there")
        return layers

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with tokens that read what earlier layers chose."""
        from harness.model.sparse_attention.index_lists import tidal

        layers, shared = self.chosen(model), self.share == "layer"
        return tidal(model, layers, self._choosing(model), count=self.top, shared=shared, name=self.label)

    def _choosing(self, model: "Decoder") -> tuple[int, ...]:
        """The layers named, or those that read all keys nearest to the paper's places; ascending."""
        full = super().chosen(model)
        scaled = (full[max(round(place * len(full)), 1 if len(full) > 2 else 0)] for place in CHOOSING)
        return tuple(sorted({*(self.choose or scaled)}))
