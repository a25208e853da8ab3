"""Chunk select: a token reads the first keys, the last ones, and a few chunks between them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.prepared import Prepared
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class ChunkSelect(InLayers):
    """Let a token read the first keys, the last ones, its own chunk, and the chunks whose last keys it looks at most.

    How: keys are taken in chunks of ``size``, counted from a row's first token. A chunk is scored by the product of the
    query with the key of its last token, the mean over the heads that share the key.

    Paper: after "ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs Inference", Ouyang et al.,
    arXiv:2510.02361.

    Parameters:
        size: keys of a chunk.
        top: chunks that a token reads beside the others; texts of no more chunks are as dense.
        sinks: first keys that it reads.
        window: last keys that it reads, its own included.

    Limits: nothing is saved: what is left out is masked. The cache stays whole.

    Deviations: nothing is trained: the paper scores chunks by trained adapters of queries and keys, ends them where a
    trained adapter sees the end of a sentence, and keeps a choice until a chunk ends; here chunks are of one length,
    and each token chooses for itself.

    Reference: logits equal those of dense attention under the same mask on every supported layout; with as many chunks
    as there are, they are dense bit for bit. The paper's tables have not been reproduced.
    """

    name = "chunk-select"
    paper = "arXiv:2510.02361"
    savings = Savings.SIMULATED
    examples = tuple({"size": 2, "top": top, "sinks": 1, "window": 2} for top in (3, 2, 1))
    neutral = {"top": 1 << 30}

    size: Annotated[int, Ge(1)] = 32
    top: Annotated[int, Ge(1)] = 16
    sinks: Annotated[int, Ge(0)] = 4
    window: Annotated[int, Ge(1)] = 128

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with tokens that choose chunks."""
        from harness.model.sparse_attention.chunks import chunked

        sizes = {"size": self.size, "count": self.top, "sinks": self.sinks, "window": self.window}
        return chunked(model, self.chosen(model), **sizes, name=self.label)
