"""Magnitude: zero the smallest weights."""

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
class Magnitude(Uneven):
    """Zero the smallest weights of each linear layer: the control for pruning that looks at activations.

    How: in every linear layer, the ``sparsity`` share of its weights with the least magnitude is set to zero. In a
    pattern of blocks, a block's score is the sum of its squared weights. Calibration text is read with ``budget=owl``
    alone.

    Paper: "Learning both Weights and Connections for Efficient Neural Networks", Han et al., arXiv:1506.02626,
    without its retraining: the one-shot baseline of arXiv:2306.11695.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated.
    """

    name = "magnitude"
    family = Family.PRUNING
    spans_devices = True
    calibrates_layers = True
    paper = "arXiv:1506.02626"
    savings = Savings.SIMULATED
    examples = (
        *({"sparsity": sparsity} for sparsity in (0.25, 0.5, 0.75)),
        {"budget": "owl", "samples": 2, "length": 48},
    )
    neutral = {"sparsity": 0}

    @property
    def needs_preparation(self) -> bool:
        """Whether the layers' sparsities are to be seen first."""
        return self.budget != "uniform"

    @property
    def sweeps(self) -> int:
        """Those that see which weights stand out."""
        return self.budget_sweeps

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the layers' sparsities.

        Returns facts alone: ``sparsity``, by layer.

        Raises:
            MethodError: sparsities that do not fit the model, or activations that are not finite.
        """
        return Prepared(facts={"sparsity": self.budgets(model, study)})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with zeros for its smallest weights."""
        from harness.model.weights.pruning import magnitude, without

        sites = self.sites(model)
        sparsity = prepared.facts["sparsity"] if self.needs_preparation else self.sparsity_by_layer(model)
        return without(model, sites, magnitude(sites, self.pattern, sparsity), self.pattern)
