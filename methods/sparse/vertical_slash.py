"""Vertical-slash: a prompt is read by a fixed number of columns and diagonals of its attention."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Phase, Savings
from harness.contract.prepared import Prepared
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class VerticalSlash(InLayers):
    """Read a prompt by those columns and diagonals of its attention that its last queries look at most.

    How: the attention of the prompt's last queries is computed in full. Its mean by key chooses the columns, keys that
    all queries read; its mean by distance chooses the diagonals. Beside them every query reads the first
    keys and its last ones. Each head chooses for itself. What follows the prompt reads all keys.

    Paper: "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention", Jiang et al.,
    arXiv:2407.02490; settings and sums as in "The Sparse Frontier", Nawrot et al., arXiv:2504.17768.

    Parameters:
        columns: keys that all queries of a head read.
        diagonals: distances at which they read.
        queries: last queries of the prompt that choose.
        sinks: first keys that all queries read beside those that are chosen.
        window: last keys, its own included, that each query reads beside them.

    Limits: nothing is saved: the keys that are left out are masked, and what chooses comes on top. A prompt no longer
    than columns, or than diagonals, is as dense. The cache stays whole.

    Deviations: none that is known; the papers run a kernel on a card.

    Reference: logits equal those of dense attention under the same mask on every supported layout; the scores equal
    sums written out by hand. The papers' tables have not been reproduced.
    """

    name = "vertical-slash"
    paper = "arXiv:2407.02490"
    savings = Savings.SIMULATED
    phases = frozenset({Phase.PREFILL})
    input_dependent = True
    pools_prompt = True
    examples = tuple(
        {"columns": count, "diagonals": count, "queries": 4, "sinks": 1, "window": 1} for count in (6, 4, 2)
    )
    neutral = {"columns": 1 << 30}

    columns: Annotated[int, Ge(1)] = 512
    diagonals: Annotated[int, Ge(1)] = 512
    queries: Annotated[int, Ge(1)] = 256
    sinks: Annotated[int, Ge(0)] = 4
    window: Annotated[int, Ge(1)] = 64

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with prompts that are read so."""
        from functools import partial

        from harness.model.sparse_attention.vertical_slash import by_last_queries

        columns, diagonals = (partial(largest, count=count) for count in (self.columns, self.diagonals))
        least = max(self.columns, self.diagonals)
        always = {"sinks": self.sinks, "window": self.window, "queries": self.queries}
        return by_last_queries(model, self.chosen(model), columns, diagonals, **always, least=least, name=self.label)


def largest(scores: "torch.Tensor", count: int) -> "torch.Tensor":
    """Which of the scores are among the largest, bool [heads, places] as they are."""
    import torch

    places = scores.topk(min(count, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, value=True)
