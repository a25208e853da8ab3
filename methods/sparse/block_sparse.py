"""Block-sparse: prune in blocks with Wanda, and multiply only the blocks that stay."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.contract.parameters import Sparsity
from harness.contract.prepared import Prepared
from harness.model.weights.computations import Computations, HasKernels, Layer
from harness.model.weights.mixins import OnLinears
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.linear import ReplacementLayer, Site

DEFAULT = (0.8,)
"""The share of blocks that go, where neither this method nor one before it says."""


@dataclass(frozen=True, kw_only=True)
class BlockSparse(OnLinears, OnText, HasKernels):
    """Prune the linear layers in blocks, and run them on a sparse kernel that skips what is zero.

    How: Wanda chooses blocks of several outputs of one input (see ``wanda``); the blocks that stay are kept with their
    inputs' numbers and multiplied by a kernel in C, on AMX, AVX512-VNNI or AVX2 where the processor has it, else in
    plain C; on CUDA by one in Triton, in blocks of 16x1 or 64x1. With int8, weights are rounded per output row and
    activations per token, as in ``int8-dynamic``. The kernel is compiled on first use, with the system's C compiler,
    and checked against the dense product, and taken for layers on which it is at least 10 percent faster here than the
    model's own product at some number of tokens, and slower at none.

    Stacked on a pruning method, it takes the zeros as they are: ``wanda:pattern=16x1,sparsity=0.8+block-sparse``.

    Paper: "An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs", Shen et
    al., arXiv:2306.16601; Wanda's is arXiv:2306.11695.

    Parameters:
        sparsity: the share of blocks that go, from 0 to below 1; one for all layers, or one for each. Left out, it is
            0.8, or whatever a pruning method before it left.
        pattern: "16x1", "4x1", the paper's, or "64x1": outputs of a block by inputs. Larger ones are faster, smaller
            ones keep more. On a CPU a block of 64x1 is four of 16x1.
        number: "int8", or "fp32", whose answers are those of the pruned weights to rounding. On CUDA these are in the
            type of the model.

    Limits: without a C compiler, on CUDA without Triton or on a card below compute capability 8.0, with a kernel that
    fails its check, and where none is faster, the same numbers are multiplied densely and the record calls it
    simulated; ``--kernel`` asks for one by name. The paper trains its sparse models; without training, high sparsity
    costs much quality.

    Deviations: the paper's int8 kernel is the 4x1 pattern, with scales of activations calibrated in advance; here they
    are computed for each token as it comes, and 16x1 is the default, because more of the registers are used.

    Reference: both kernels agree with each other and with the dense product over the same weights; FLOPs and bytes,
    indices and scales included, equal a hand count.
    """

    name = "block-sparse"
    family = Family.SPARSE
    paper = "arXiv:2306.16601"
    calibrates_layers = True
    examples = tuple({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.5, 0.7, 0.9))

    sparsity: Sparsity | None = None
    pattern: Literal["64x1", "16x1", "4x1"] = "16x1"
    number: Literal["int8", "fp32"] = "int8"

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse sparsities that do not fit the model, and zeros of a method below that leave no blocks."""
        from harness.model.weights.pruning import refuse_pattern, sparsity_by_layer

        super().check_model(model, below)
        sparsity_by_layer(model, self.sparsity or DEFAULT)
        places = {site.place for site in self.sites(model)}
        for part in below if self.sparsity is None else ():
            if isinstance(part, Zeros) and isinstance(part, OnLinears):
                by_layer = part.sparsity_by_layer(model)
                if any(site.place in places and by_layer[site.layer or 0] for site in part.sites(model)):
                    refuse_pattern(part.pattern, self.pattern, part.name)

    @property
    def sweeps(self) -> int:
        """Once to look at what a layer reads, once to see what it gives with zeros."""
        return 2

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
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
        sparsity = sparsity_by_layer(model, self.sparsity or DEFAULT)
        return wanda(model, self.windows(model, study), sites, self.pattern, sparsity).state()

    def computations(self, layer: Layer, device: str) -> Computations:
        """The project's kernels, by instruction set and for CUDA, and the dense product over the zeros."""
        from harness.model.weights.block_sparse import computations

        return computations(layer, device, self.number)

    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The linear layers with the zeros that this method declares, or one that prunes before it."""
        from harness.model.weights.pruning import ROWS, sparsity_by_layer

        sites, rows = self.sites(model), ROWS[self.pattern]
        zeros: dict[str, float] = {}
        for part in below if self.sparsity is None else ():
            if isinstance(part, Zeros) and isinstance(part, OnLinears) and any(part.sparsity):
                by_layer = part.sparsity_by_layer(model)
                zeros |= {site.place: by_layer[site.layer or 0] for site in part.sites(model)}
        if not zeros:
            by_layer = sparsity_by_layer(model, self.sparsity or DEFAULT)
            zeros = {site.place: by_layer[site.layer or 0] for site in sites}
        return [(site, Layer.of(site.weight, zeros.get(site.place, 0.0), rows)) for site in sites]

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let the chosen linear layers run on their blocks alone."""
        from harness.model.weights.block_sparse import zero_blocks
        from harness.model.weights.kernel_plan import computation
        from harness.model.weights.linear import installed
        from harness.model.weights.pruning import ROWS, Pruned

        sites, rows = self.sites(model), ROWS[self.pattern]
        pruned = None if prepared.facts.get("as pruned") else Pruned.of(prepared, sites)
        if pruned:
            pruned.warn()

        def replacement(site: "Site") -> "ReplacementLayer":
            weight = site.weight * pruned.masks[site.name] if pruned else site.weight
            layer = Layer.of(weight, zero_blocks(weight, rows), rows)
            return computation(self, model, site, layer).make(weight, site.bias)

        return installed((site, replacement(site)) for site in sites)
