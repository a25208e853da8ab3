"""Wanda: zero the weights whose magnitude times the size of their input is least."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.prepared import Prepared
from harness.model.weights.uneven import Uneven

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class Wanda(Uneven):
    """Zero the weights of the linear layers that matter least to their outputs, without training.

    How: the layers run one after the other on calibration text, each on what the pruned layers before it give. A
    weight's score is S = |W| ||x||, with x all values of its input. In every output row the ``sparsity`` share of
    weights with the least S is set to zero; nothing else is changed. In a pattern of blocks, a block's score is the
    sum of S squared, and every row of blocks loses the same number.

    Paper: "A Simple and Effective Pruning Approach for Large Language Models", Sun et al., arXiv:2306.11695.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated;
    ``wanda:pattern=16x1,sparsity=0.8+block-sparse`` skips them.

    Deviations: the paper calibrates on 128 windows of 2048 tokens of C4; here the text is the run's calibration text,
    and less of it by default, so that a CPU takes seconds. Blocks are this harness's own.

    Reference: norms and choices agree with torchao's WandaSparsifier on the same text (which squares the norms in its
    score; so does the comparison), and a layer's score equals the formula in double precision.
    """

    name = "wanda"
    family = Family.PRUNING
    paper = "arXiv:2306.11695"
    savings = Savings.SIMULATED
    calibrates_layers = True
    examples = (
        *({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.25, 0.5, 0.75)),
        {"budget": "owl", "samples": 2, "length": 48},
    )
    neutral = {"sparsity": 0, "samples": 2, "length": 48}

    @property
    def sweeps(self) -> int:
        """Once to look at what a layer reads, once to see what it gives with zeros; before, what stands out."""
        return 2 + self.budget_sweeps

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the weights that go.

        Returns tensors: by a linear layer's name, its mask in bits; facts: ``zeros``, the share that went,
        ``sparsity``, what each layer was to lose, ``tokens``, how many were looked at, and ``collapsed``, names of
        linear layers that keep next to nothing.

        Raises:
            MethodError: sparsities that do not fit the model, or activations or weights that are not finite.
        """
        from harness.model.weights.pruning import wanda

        sites, sparsity = self.sites(model), self.budgets(model, study)
        state = wanda(model, self.windows(model, study), sites, self.pattern, sparsity).state()
        return Prepared(state.tensors, state.facts | {"sparsity": sparsity})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with zeros for the chosen weights."""
        from harness.model.weights.pruning import Pruned, without

        sites = self.sites(model)
        return without(model, sites, Pruned.of(prepared, sites), self.pattern)
