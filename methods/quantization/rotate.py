"""Rotate: the residual stream in another basis, in which no channel stands out."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.model.weights.rewriting import RewritesWeights

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Rotate(RewritesWeights):
    """Turn the residual stream so that the method above rounds weights and activations without outliers.

    How: gains and biases of norms go into the linear layers that read them, LayerNorms become RMSNorms, and the stream
    is turned by a Hadamard matrix with random signs where one of the model's width is known (2^k m with m of Paley's
    constructions: 12, 20, 28, 36, ...), else by a random orthogonal matrix. Embeddings, linear layers and head are
    multiplied by it in double precision; a head that is tied to the embedding gets a weight of its own. RMSNorms
    without gains do not notice, so the answers are those of dense to rounding, and a channel that was large on every
    token is spread over all of them. What rounds goes on top: ``rotate+int4-weight-only``, ``rotate+int8-dynamic``,
    ``rotate+mx:activations=true``.

    Paper: "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", Ashkboos et al., arXiv:2404.00456.

    Parameters:
        seed: of the random signs, or of the random matrix.
        online: what attention's and the MLP's way back read is multiplied by a Hadamard matrix as it comes, n log2 n
            additions a token for n = 2^k, and their weights by its inverse; the work is counted as added work
            ("hadamard"). Without it these inputs stay as they are.

    Limits: by itself it saves nothing. A head that was tied to the embedding takes memory of its own. In half precision
    turned weights are rounded to that. Models that normalise the output of a branch (Gemma 2 and 3, OLMo 2), mixtures
    of experts, and streams to which something is added that is no weight are refused. It goes before other methods in a
    stack. Zeros of a pruned weight would be filled, so pruning goes above it, if anywhere.

    Deviations: the paper turns values by head within the weights and by a product across heads as they come; here
    ``online`` turns all of attention's output at once. Its rotation of keys for the cache is left out, and rounding is
    whatever method is above it.

    Reference: logits equal those of dense to float rounding, with and without ``online``; on a layer with planted
    outliers int8 after it errs as on normal values. No published number has been reproduced.
    """

    name = "rotate"
    family = Family.QUANTIZATION
    paper = "arXiv:2404.00456"
    savings = Savings.NONE
    examples = ({}, {"online": True})

    seed: Annotated[int, Ge(0)] = 0
    online: bool = False

    def check_model(self, model: "Decoder", below: "tuple[Method, ...]" = ()) -> None:
        """Refuse a model whose residual stream has no other basis."""
        from harness.model.rotation import require_rotatable

        super().check_model(model, below)
        require_rotatable(model, online=self.online)

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Run the model on a turned stream."""
        from harness.model.rotation import rotated

        return rotated(model, self.seed, online=self.online)
