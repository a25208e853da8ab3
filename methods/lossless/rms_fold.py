"""RMS fold: a model with LayerNorms, rewritten as one with RMSNorms."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.model.weights.rewriting import RewritesWeights

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class RmsFold(RewritesWeights):
    """Rewrite a model with LayerNorms so that RMSNorms without parameters give the same answers.

    How: gains and biases of the norms go into the linear layers that read them, the head included, which is untied from
    the embedding. Whatever writes into the residual stream, embeddings and the outputs of attention and MLP, has its
    mean taken off in the weights. On vectors of mean zero a LayerNorm is an RMSNorm.

    Paper: "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers", Jiang et al.,
    arXiv:2305.14858.

    Parameters: none.

    Limits: what is saved is arithmetic of the norms, which FLOPs leave out, so the record calls it none; the time shows
    what it is worth, and on a CPU it can be less than nothing: torch has LayerNorm in one operation there, and RMSNorm
    in several. A head that was tied to the embedding takes memory of its own. Models with RMSNorms are refused, and so
    is half precision, which cannot hold the products. It goes before other methods in a stack.

    Deviations: the paper's variant with one channel less, Pre-CRMSNorm, is left out.

    Reference: logits equal those of dense to float rounding, and generated text is the same.
    """

    name = "rms-fold"
    family = Family.LOSSLESS
    paper = "arXiv:2305.14858"
    savings = Savings.NONE
    exact = True

    def check_model(self, model: "Decoder", below: "tuple[Method, ...]" = ()) -> None:
        """Refuse models without LayerNorms, and weights in half precision."""
        from harness.model.basis import require_layer_norms

        super().check_model(model, below)
        require_layer_norms(model)
        self.require_float32(model)

    @contextmanager
    def attach(self, model: "Decoder", prepared: "Prepared") -> Iterator[None]:
        """Run the model on RMSNorms."""
        from harness.model.basis import centre, fold, rms_norms
        from harness.model.weights.replaced import replaced

        self.check_model(model)
        with replaced(model, fold(model) | centre(model)), rms_norms(model):
            yield
