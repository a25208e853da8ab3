"""Eviction: keep a share of the prompt's keys and values, by what each of several published scores says of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval

from harness.contract.decoder import Decoder
from harness.contract.method import Method
from harness.model.cache.mixins import Presses

if TYPE_CHECKING:
    import torch

    from harness.model.cache.press import Entries


@dataclass(frozen=True, kw_only=True)
class KvEvict(Presses):
    """Keep a share of the prompt's keys and values, once the prompt was read; everything that comes after it stays.

    How: in each layer and each key and value head the entries with the best scores stay, as many in each head. "snapkv"
    scores by what the prompt's last queries attend to, averaged over neighbours; "h2o" by the attention received from
    all of the prompt, half of what stays being the last tokens; "tova" by what the last query attends to, over all
    heads; "expected-attention" by the attention that queries to come are expected to pay, if they are distributed as
    the prompt's; "knorm" by the norm of the key, the smaller the better.

    Paper: "SnapKV: LLM Knows What You are Looking for Before Generation", Li et al., arXiv:2404.14469; H2O, Zhang et
    al., arXiv:2306.14048; TOVA, Oren et al., arXiv:2401.06104; Expected Attention, Devoto et al., arXiv:2510.00636;
    Knorm, Devoto et al., arXiv:2406.11430; PyramidKV, Cai et al., arXiv:2406.02069.

    Parameters:
        scorer: whose score.
        budget: the share of the prompt's entries that stays, at least one entry in each head; 1 leaves the model dense.
        window: snapkv: the last tokens, whose queries score, and whose entries stay.
        pyramid: the mean budget over that of the last layer: budgets fall from layer to layer in equal steps, with the
            same mean. 1: all layers alike; 20 is PyramidKV's.

    Limits: what goes cannot be recalled. A score that looks at queries sees the question if the question is part of
    what is read first: hold it back to see what a context is worth to questions that were not known
    (``--score_suffix``). The prompt is read in full: the time to the first token does not fall. Scoring a text in one
    forward never reads the cache, so it is as dense. Of a prompt that is read in parts, the last part's queries score.

    Deviations: budgets are shares of the prompt, where SnapKV, H2O, TOVA and PyramidKV hold a number of entries, the
    second and third while they write too. Queries of a group of heads that share keys score together, by their mean.
    Attention is normalised over the entries that the layer holds, learned sinks left out. PyramidKV counts its window
    apart from the budget.

    Reference: kvpress, presses of the same names; decoding equals, to rounding, a dense forward without a cache in
    which exactly what went is masked.
    """

    name = "kv-evict"
    paper = "arXiv:2404.14469"
    examples = tuple({"budget": budget, "window": 2} for budget in (0.75, 0.5, 0.25))
    neutral = {"budget": 1.0}

    scorer: Literal["snapkv", "knorm", "h2o", "tova", "expected-attention"] = "snapkv"
    budget: Annotated[float, Interval(gt=0, le=1)] = 0.5
    window: Annotated[int, Ge(1)] = 32
    pyramid: Annotated[float, Ge(1)] = 1.0

    @property
    def reads_queries(self) -> bool:
        """All scores do but that of the keys' norm."""
        return self.scorer != "knorm"

    def check_model(self, model: Decoder, below: tuple[Method, ...] = ()) -> None:
        """Refuse also an architecture on which a score is not known to be right."""
        from harness.model.cache.product import require_turned

        super().check_model(model, below)
        if self.scorer == "expected-attention":
            require_turned(model, f"{self.name}:scorer={self.scorer}")

    def choose(self, entries: "Entries") -> "torch.Tensor":
        """The entries with the best scores, [rows, kv heads, kept]."""
        from harness.methods.cache.scores import SCORES

        count = max(round(self._share(entries.layer, entries.layers) * len(entries)), 1)
        if count >= len(entries):
            return entries.ends(len(entries), 0)
        return entries.select(SCORES[self.scorer](entries, count, self.window), count)

    def _share(self, layer: int, layers: int) -> float:
        """A layer's budget: from the first layer's to the last one's in equal steps around the mean."""
        first = min(2 * self.budget - self.budget / self.pyramid, 1.0)
        last = 2 * self.budget - first
        return self.budget if layers == 1 else first + (last - first) * layer / (layers - 1)
