"""Wanda: zero the weights whose magnitude times the size of their input is least."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Indices, Patterns, Sparsity
from harness.contract.parameters import Pattern as ZeroPattern
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.calibration import Calibration
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Wanda(Method):
    """Zero the weights of the layers' linear maps that matter least to their outputs, without training.

    How: the layers run one after the other on calibration text, each on what the pruned layers before it give. A
    weight's score is S = |W| ||x||, with x all values of its input. In every output row the ``sparsity`` share of
    weights with the least S is set to zero; nothing else is changed. In a pattern of blocks, a block's score is the
    sum of S squared, and every row of blocks loses the same number.

    Paper: "A Simple and Effective Pruning Approach for Large Language Models", Sun et al., arXiv:2306.11695.

    Parameters:
        sparsity: the share of weights that go, from 0 to below 1; one for all layers, or one for each
            (``sparsity=0.5/0.6/0.7/0.7``).
        pattern: the shape of the zeros: "unstructured"; "2:4" (two of each four neighbours, sparsity 0.5); "4x1" or
            "16x1" (blocks of 4 or 16 outputs of one input, which ``block-sparse`` can skip).
        linears: names of the maps that are pruned, with wildcards (``linears=*.mlp.*``).
        layers: in these layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.
        samples: calibration windows, at least 1.
        length: tokens of a window, at least 2; longer than the model's positions is cut to them.

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
    swaps_linears = True
    examples = tuple({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.25, 0.5, 0.75))
    neutral: ClassVar = {"sparsity": 0, "samples": 2, "length": 48}

    sparsity: Sparsity = (0.5,)
    pattern: ZeroPattern = "unstructured"
    linears: Patterns = ("*",)
    layers: Indices = ()
    samples: Annotated[int, Ge(1)] = 32
    length: Annotated[int, Ge(2)] = 512

    def check(self) -> None:
        """Two of four is half."""
        if self.pattern == "2:4" and set(self.sparsity) - {0, 0.5}:
            raise MethodError(f"wanda: pattern=2:4 has sparsity=0.5, not {'/'.join(map(str, self.sparsity))}")

    def prepare(self, model: "Decoder", calibration: "Calibration") -> Prepared:
        """Choose the weights that go.

        Returns tensors: by a map's name, its mask in bits; facts: ``zeros``, the share that went, ``tokens``, how many
        were looked at, and ``collapsed``, names of maps that keep next to nothing.

        Raises:
            MethodError: sparsities that do not fit the model, or activations or weights that are not finite.
        """
        from harness.model.weights.linear import sites
        from harness.model.weights.pruning import sparsity_by_layer, wanda

        chosen = sites(model, self.linears, layers=self.layers)
        sparsity = sparsity_by_layer(model, self.sparsity)
        length = min(self.length, getattr(model.config, "max_position_embeddings", self.length))
        windows = calibration.windows(model, count=self.samples, length=length)
        return wanda(model, windows, chosen, self.pattern, sparsity).state()

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with zeros for the chosen weights."""
        from harness.model.weights.linear import sites
        from harness.model.weights.pruning import Pruned, without

        chosen = sites(model, self.linears, layers=self.layers)
        return without(chosen, Pruned.of(prepared, chosen), self.pattern)
