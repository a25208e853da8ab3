"""Block summary: a token reads its own block of keys, and each block before it as a single key."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.prepared import Prepared
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class BlockSummary(InLayers):
    """Let a token read its own block of keys one by one, and every block before it as one key and one value.

    How: keys are taken in blocks of ``size``, counted from a row's first token. A block before a token's own stands in
    one joint softmax as the mean of its keys, with log(size) added to the product, and gives the mean of its values. A
    token then multiplies at most size + tokens/size keys. The means are kept beside the cache and made once.

    Paper: after "Combiner: Full Attention Transformer with Sparse Computation Cost", Ren et al., arXiv:2107.05768.

    Parameters:
        size: keys of a block, 1 leaves the answers dense; texts that are no longer are as dense.

    Limits: models that were not trained so lose much: a block's mean is like none of its keys. The cache stays whole,
    and holds the means too, 1/size more.

    Deviations: the paper trains with it, and weighs the values of a block by the attention of the block's pooled query,
    which a cache does not hold; here all weigh alike, and log(size) stands for what training would learn.

    Reference: with size 1, and with blocks as long as the text, logits equal dense ones; on gaussian queries, keys and
    values, log(size) lowers the error of the output. Decoding equals recomputation on every supported layout.
    """

    name = "block-summary"
    paper = "arXiv:2107.05768"
    examples = tuple({"size": size} for size in (2, 3))
    neutral = {"size": 1 << 30}

    size: Annotated[int, Ge(1)] = 64

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with blocks that are read as one key each."""
        from harness.model.sparse_attention.summaries import summarized

        return summarized(model, self.chosen(model), size=self.size, name=self.label)
