"""FlexPrefill: a prompt is read by as many columns and diagonals as hold most of its attention."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from harness.contract.facts import Phase, Savings
from harness.contract.prepared import Prepared
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class FlexPrefill(InLayers):
    """Read a prompt by as few columns and diagonals of its attention as hold a share of what its last queries look at.

    How: as ``vertical-slash``, but each head takes as many columns, and as many diagonals, as together have the share
    ``alpha`` of the last queries' attention, and no fewer than ``least``.

    Paper: "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference", Lai et al.,
    arXiv:2502.20766; settings and sums as in "The Sparse Frontier", Nawrot et al., arXiv:2504.17768.

    Parameters:
        alpha: the share of the attention that columns, and diagonals, are to have; 1 leaves the model dense.
        least: the fewest columns, and diagonals, that a head reads.
        queries: last queries of the prompt that choose.
        sinks: first keys that all queries read beside those that are chosen.
        window: last keys, its own included, that each query reads beside them.

    Limits: nothing is saved: the keys that are left out are masked, and what chooses comes on top. The cache stays
    whole.

    Deviations: every head takes columns and diagonals; the paper lets heads whose blocks are told apart by pooled keys
    choose blocks instead.

    Reference: logits equal those of dense attention under the same mask on every supported layout. The papers' tables
    have not been reproduced.
    """

    name = "flex-prefill"
    paper = "arXiv:2502.20766"
    savings = Savings.SIMULATED
    phases = frozenset({Phase.PREFILL})
    input_dependent = True
    pools_prompt = True
    examples = tuple({"alpha": alpha, "least": 1, "queries": 4, "sinks": 1, "window": 1} for alpha in (0.8, 0.5, 0.2))
    neutral = {"alpha": 1.0}

    alpha: Annotated[float, Interval(gt=0, le=1)] = 0.9
    least: Annotated[int, Ge(1)] = 256
    queries: Annotated[int, Ge(1)] = 256
    sinks: Annotated[int, Ge(0)] = 4
    window: Annotated[int, Ge(1)] = 64

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with prompts that are read so."""
        from functools import partial

        from harness.model.sparse_attention.vertical_slash import by_last_queries

        choice, least = partial(holding, share=self.alpha, least=self.least), self.least
        if self.alpha == 1:
            least = 1 << 62  # rounding of sums leaves nothing out
        always = {"sinks": self.sinks, "window": self.window, "queries": self.queries}
        return by_last_queries(model, self.chosen(model), choice, choice, **always, least=least, name=self.label)


def holding(scores: "torch.Tensor", share: float, least: int) -> "torch.Tensor":
    """Which of the scores [heads, places] are, from the largest on, the fewest that sum to a share, bool."""
    import torch

    ordered = scores.sort(dim=-1, descending=True, stable=True)
    sums = ordered.values.cumsum(-1)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], -1)  # of all that are larger
    taken = before < share * sums[:, -1:]
    taken[:, :least] = True
    return torch.zeros_like(taken).scatter(-1, ordered.indices, taken)
