"""Block-sparse: prune in blocks with Wanda, and multiply only the blocks that stay."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.contract.families import Family
from harness.contract.mixins import OnText
from harness.contract.parameters import Sparsity
from harness.contract.prepared import Prepared
from harness.model.weights.mixins import OnLinears

if TYPE_CHECKING:
    from harness.contract.calibration import Calibration
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class BlockSparse(OnLinears, OnText):
    """Prune the linear layers in blocks, and run them on a sparse kernel that skips what is zero.

    How: Wanda chooses blocks of several outputs of one input (see ``wanda``); the blocks that stay are kept with their
    inputs' numbers and multiplied by a kernel in C: on AMX or AVX512-VNNI where the processor has it, else in plain C.
    With int8, weights are rounded per output row and activations per token, as in ``int8-dynamic``. The kernel is
    compiled on first use by the system's C compiler and checked against the dense product.

    Stacked on a pruning method, it takes the zeros as they are: ``wanda:pattern=16x1,sparsity=0.8+block-sparse``.

    Paper: "An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs", Shen et
    al., arXiv:2306.16601; Wanda's is arXiv:2306.11695.

    Parameters:
        sparsity: the share of blocks that go, from 0 to below 1; one for all layers, or one for each. Left out, it is
            0.8, or whatever a pruning method before it left.
        pattern: "16x1" or "4x1", the paper's: outputs of a block by inputs. The first is faster, the second keeps more.
        number: "int8", or "fp32", whose answers are those of the pruned weights to rounding.

    Limits: on a CPU alone. Without a C compiler, or with a kernel that fails its check, the same numbers are multiplied
    densely and the record calls it simulated. The paper trains its sparse models; without training, high sparsity
    costs much quality.

    Deviations: the paper's int8 kernel is the 4x1 pattern, with scales of activations calibrated in advance; here they
    are computed for each token as it comes, and 16x1 is the default, because more of the registers are used.

    Reference: both kernels agree with each other and with the dense product over the same weights; FLOPs and bytes,
    indices and scales included, equal a hand count.
    """

    name = "block-sparse"
    family = Family.SPARSE
    paper = "arXiv:2306.16601"
    swaps_linears = True
    calibrates_layers = True
    examples = tuple({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.5, 0.7, 0.9))

    sparsity: Sparsity | None = None
    pattern: Literal["16x1", "4x1"] = "16x1"
    number: Literal["int8", "fp32"] = "int8"

    def prepare(self, model: "Decoder", calibration: "Calibration") -> Prepared:
        """Choose the blocks that go, unless a method before has done it: then the facts say ``as pruned``.

        Returns the masks as ``wanda`` does.

        Raises:
            MethodError: sparsities that do not fit the model, zeros in a pattern that leaves no blocks, or activations
                or weights that are not finite.
        """
        from harness.model.weights.pruning import require_blocks, sparsity_by_layer, wanda

        sites = self.sites(model)
        if self.sparsity is None and require_blocks(sites, self.pattern):
            return Prepared(facts={"as pruned": True})
        sparsity = sparsity_by_layer(model, self.sparsity or (0.8,))
        return wanda(model, self.windows(model, calibration), sites, self.pattern, sparsity).state()

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let the chosen linear layers run on their blocks alone."""
        from harness.model.weights.block_sparse import block_sparse_layer, why_not
        from harness.model.weights.linear import installed
        from harness.model.weights.pruning import ROWS, Pruned

        sites = self.sites(model)
        reasons = {reason: None for site in sites if (reason := why_not(site.weight))}
        for reason in reasons:
            logging.getLogger("harness").warning(f"block-sparse multiplies densely: {reason}")
        pruned = None if prepared.facts.get("as pruned") else Pruned.of(prepared, sites)
        if pruned:
            pruned.warn()
        weights = ((site, site.weight * pruned.masks[site.name] if pruned else site.weight) for site in sites)
        rows = ROWS[self.pattern]
        return installed((site, block_sparse_layer(weight, site.bias, rows, self.number)) for site, weight in weights)
