"""Quest: a token that is written reads the pages of keys that may matter to it, and no others."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Phase
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.sparse_attention.reads_lists import ReadsLists

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Quest(ReadsLists):
    """Let a token that is written read a few pages of the keys, those that may matter most to its query.

    How: keys are taken in pages, counted from a row's first token. Of each full page the least and the largest number
    in each channel are kept beside the cache; with them, sum_d max(q_d least_d, q_d largest_d) is at least the product
    of the query with any key of the page. The pages of the highest sums are read, and the token's own. The first layers
    read all keys, and so does the prompt.

    Paper: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", Tang et al., arXiv:2406.10774.

    Parameters:
        budget: keys that a token reads, in whole pages; texts that are no longer are as dense.
        page: keys of a page.
        dense: the first so many layers read all keys.

    Limits: the cache stays whole, and holds the bounds of its pages too, 1/page more. Savings are real where the
    kernel for lists of keys runs, in float32 on a CPU with a C compiler; elsewhere the same keys are read under a mask
    and the record calls it simulated.

    Deviations: heads that share keys share their pages, by the mean of their scores; the paper's models share none.

    Reference: logits equal those of dense attention under the mask of the chosen pages, to rounding, on every supported
    layout; no page that is left out has a bound above one that is read. The paper's tables have not been reproduced.
    """

    name = "quest"
    paper = "arXiv:2406.10774"
    phases = frozenset({Phase.DECODE})
    examples = tuple({"budget": budget, "page": 2, "dense": 1} for budget in (8, 6, 4))
    neutral = {"budget": 1 << 30}

    budget: Annotated[int, Ge(1)] = 1024
    page: Annotated[int, Ge(1)] = 16
    dense: Annotated[int, Ge(0)] = 2

    def check(self) -> None:
        """Refuse a budget of less than a page, or of parts of pages."""
        if self.budget % self.page:
            raise MethodError(
                f"{self.name}: budget={self.budget} is not in whole pages of {self.page} keys; the nearest that is: "
                f"{max(round(self.budget / self.page), 1) * self.page}"
            )

    def chosen(self, model: "Decoder") -> tuple[int, ...]:
        """The layers that read pages.

        Raises:
            MethodError: none is left.
        """
        sparse = tuple(layer for layer in super().chosen(model) if layer >= self.dense)
        if not sparse:
            raise MethodError(f"{self.name}: dense={self.dense} leaves no layer that reads pages; give fewer")
        return sparse

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with tokens that read pages."""
        from harness.model.sparse_attention.pages import paged

        return paged(model, self.chosen(model), budget=self.budget, size=self.page, name=self.label)
