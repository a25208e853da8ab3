"""SparseGPT: zero weights one input after the other, and let the weights that are left make up for it."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.mixins import OnText
from harness.contract.parameters import Pattern
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.weights.mixins import OnLinears
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.compensation import Hessian
    from harness.model.weights.linear import Site
    from harness.model.weights.observers import Gram

log = logging.getLogger("harness")


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Zeros, OnLinears, OnText):
    """Zero weights of the linear layers, and change those that stay so that the outputs change least, without training.

    How: the layers run one after the other on calibration text, each on what the pruned layers before it give. Of every
    linear layer's inputs x the Hessian H = (2/n) sum x x^T is taken, and U with H^-1 = U^T U. Then, in blocks of 128
    inputs, the ``sparsity`` share of the block's weights with the least w^2 / U_ii^2 is chosen, all rows together (in
    2:4: two of each four inputs of a row, when their turn comes). Input by input these are set to zero, and the error
    is passed on to the weights of later inputs.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", Frantar and Alistarh,
    arXiv:2301.00774.

    Parameters:
        in_turn: inside a layer too, each linear layer is chosen on what the pruned ones before it give (the paper's
            code calls it true_sequential); the calibration takes four times the forwards.

    Limits: by itself it saves nothing: the dense product multiplies the zeros. The record calls it simulated;
    ``sparse-gpt:pattern=16x1,sparsity=0.8+block-sparse`` skips them. The state holds all changed weights. As rows
    compete, a row can lose all of its weights: the state names linear layers where one did, and the run warns.

    Deviations: the paper calibrates on 128 windows of 2048 tokens of C4; here the text is the run's calibration text,
    and less of it by default, so that a CPU takes seconds. Blocks of outputs are this harness's own: their score is the
    sum of their weights'. The Hessian is factorised in double precision; where that fails with a damping of 0.01, it is
    tried with ten times that, up to 1, and the state says so.

    Reference: the errors that were passed on sum up to the error of the outputs in double precision; with a diagonal
    Hessian, 2:4 chooses what Wanda does and changes nothing else.
    """

    name = "sparse-gpt"
    family = Family.PRUNING
    paper = "arXiv:2301.00774"
    savings = Savings.SIMULATED
    swaps_linears = True
    calibrates_layers = True
    examples = tuple({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.25, 0.5, 0.75))
    neutral = {"sparsity": 0, "samples": 2, "length": 48}

    in_turn: bool = False

    @property
    def sweeps(self) -> int:
        """Once for each group of linear layers that is looked at, once to see what the layer gives with zeros."""
        return 5 if self.in_turn else 2

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the weights that go, and the values of those that stay.

        Returns tensors: by a linear layer's name, its new weight [out, in] in the model's number format; facts:
        ``zeros``, the share that went, ``tokens``, how many were looked at, ``error``, the squared error of the outputs
        in parts of what losing all weights would be, a mean over linear layers, ``damping``, by name where it is not
        0.01, and ``emptied``, names of linear layers in which a row lost all weights.

        Raises:
            MethodError: sparsities that do not fit the model, or activations or weights that are not finite.
        """
        from harness.model.weights.compensation import DAMPING, Hessian
        from harness.model.weights.observers import Gram, calibrate

        sparsity = self.sparsity_by_layer(model)
        sites = [site for site in self.sites(model) if sparsity[site.layer or 0]]
        weights: dict[str, Tensor] = {}
        errors, damping = [], {}

        def change(site: "Site", gram: "Gram") -> "Tensor":
            hessian = Hessian.of(gram.value)
            weight = site.weight.float()
            new, error = sparsified(weight, hessian, self.pattern, sparsity[site.layer or 0])
            if not new.isfinite().all():
                raise MethodError(f"{self.name}: the new weight of {site.name} is not finite: the old one is damaged")
            weights[site.name] = new.to(site.weight)
            errors.append(error / (hessian.error(weight) or 1.0))
            if hessian.damping != DAMPING:
                damping[site.name] = hessian.damping
            return weights[site.name]

        tokens = calibrate(model, self.windows(model, study), sites, Gram, change, in_turn=self.in_turn)
        zeros = sum(int((weight == 0).sum()) for weight in weights.values())
        facts = {
            "zeros": zeros / sum(weight.numel() for weight in weights.values()) if weights else 0.0,
            "tokens": tokens,
            "error": fmean(errors) if errors else 0.0,
            "damping": damping,
            "emptied": [name for name, weight in weights.items() if not weight.any(1).all()],
        }
        return Prepared({name: weight.cpu() for name, weight in weights.items()}, facts)

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with the new weights."""
        from harness.model.weights.semi_structured import zeroed_as_planned

        if emptied := prepared.facts["emptied"]:
            names = ", ".join(emptied[:3]) + (", ..." if len(emptied) > 3 else "")
            count = f"{len(emptied)} of {len(prepared.tensors)} linear layers"
            log.warning(f"{self.name}: a row lost all of its weights in {count}: {names}")
        sites = (site for site in self.sites(model) if site.name in prepared.tensors)
        return zeroed_as_planned(model, ((site, prepared.tensors[site.name], self.pattern) for site in sites))


def sparsified(weight: "Tensor", hessian: "Hessian", pattern: Pattern, sparsity: float) -> "tuple[Tensor, float]":
    """A weight [out, in] with zeros among it, and the squared error that they leave in its outputs."""
    from harness.model.weights.compensation import BLOCK, compensated
    from harness.model.weights.pruning import keep, refuse_width

    refuse_width(weight.shape[1], pattern)
    width = 4 if pattern == "2:4" else BLOCK
    scale = hessian.upper.diagonal().to(weight)  # [in]
    kept = weight != 0  # of columns whose turn has come

    def value(column: int, current: "Tensor") -> "Tensor":
        if column % width == 0:
            columns = slice(column, column + width)
            kept[:, columns] = keep(current[:, columns].abs() / scale[columns], pattern, sparsity, "matrix")
        return current[:, column].where(kept[:, column], 0)

    return compensated(weight, hessian, value)
