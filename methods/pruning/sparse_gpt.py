"""SparseGPT: zero weights one input after the other, and let the weights that are left make up for it."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Pattern
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.weights.uneven import Uneven

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.compensation import Hessian
    from harness.model.weights.formats import NumberFormat
    from harness.model.weights.linear import Site
    from harness.model.weights.observers import Gram

log = logging.getLogger("harness")


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Uneven):
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
        bits: of the weights that stay, 2 to 8, rounded to nearest as their turn comes, so that later ones make up for
            this error too; 16 rounds nothing. What is rounded here is stored and multiplied as floats.
        group: with ``bits``, neighbouring inputs that share a scale; 0: all of an output's. Zero points there are none.

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
    examples = (
        *({"sparsity": sparsity, "samples": 2, "length": 48} for sparsity in (0.25, 0.5, 0.75)),
        {"bits": 4, "group": 16, "samples": 2, "length": 48},
        {"budget": "owl", "samples": 2, "length": 48},
    )
    neutral = {"sparsity": 0, "samples": 2, "length": 48}

    in_turn: bool = False
    bits: int = 16
    group: Annotated[int, Ge(0)] = 0

    def check(self) -> None:
        """Refuse bits that no format has, and groups of what is not rounded."""
        super().check()
        if self.bits != 16 and not 2 <= self.bits <= 8:
            raise MethodError(f"{self.name}: bits={self.bits} is not valid: give 2 to 8, or 16 for no rounding")
        if self.group and self.bits == 16:
            raise MethodError(f"{self.name}: group={self.group} is of weights that are rounded: give bits too")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a group that does not divide the inputs of a linear layer."""
        super().check_model(model, below)
        if self.number is not None:
            self.number.check_inputs([site.weight.shape[1] for site in self.sites(model)])

    @property
    def number(self) -> "NumberFormat | None":
        """The number format of the weights that stay; None where they are not rounded."""
        from harness.model.weights.formats import NumberFormat

        return None if self.bits == 16 else NumberFormat(self.bits, self.group or None)

    @property
    def sweeps(self) -> int:
        """Once for each group of linear layers that is looked at, once to see what the layer gives with zeros."""
        return (5 if self.in_turn else 2) + self.budget_sweeps

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the weights that go, and the values of those that stay.

        Returns tensors: by a linear layer's name, its new weight [out, in] in the model's number format; facts:
        ``zeros``, the share that went, ``sparsity``, what each layer was to lose, ``tokens``, how many were looked at,
        ``error``, the squared error of the outputs in parts of what losing all weights would be, a mean over linear
        layers, ``damping``, by name where it is not 0.01, ``short``, names of linear layers with more inputs than they
        read tokens, ``emptied``, names of those in which a row lost all weights, and ``fewest``, how many weights the
        row keeps that lost most.

        Raises:
            MethodError: sparsities that do not fit the model, or activations or weights that are not finite.
        """
        # --8<-- [start:prepare]
        from harness.model.weights.curvatures import Curvatures
        from harness.model.weights.observers import Gram, calibrate

        sparsity = self.budgets(model, study)
        sites = [site for site in self.sites(model) if sparsity[site.layer or 0] or self.number]
        weights: dict[str, Tensor] = {}
        curvatures = Curvatures()

        def change(site: "Site", gram: "Gram") -> "Tensor":
            hessian, weight = curvatures.hessian(site, gram), site.weight.float()
            new, error = sparsified(weight, hessian, self.pattern, sparsity[site.layer or 0], self.number)
            if not new.isfinite().all():
                raise MethodError(f"{self.name}: the new weight of {site.name} is not finite: the old one is damaged")
            curvatures.add(hessian, weight, error)
            weights[site.name] = new.to(site.weight)
            return weights[site.name]

        tokens = calibrate(model, self.windows(model, study), sites, Gram, change, in_turn=self.in_turn)
        # --8<-- [end:prepare]
        fewest = {name: int((weight != 0).sum(1).min()) for name, weight in weights.items()}
        facts = curvatures.facts(tokens) | {
            "zeros": sum(int((weight == 0).sum()) for weight in weights.values())
            / max(sum(weight.numel() for weight in weights.values()), 1),
            "sparsity": sparsity,
            "emptied": [name for name, count in fewest.items() if not count],
            "fewest": min(fewest.values(), default=None),
        }
        return Prepared({name: weight.cpu() for name, weight in weights.items()}, facts)

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with the new weights."""
        from harness.model.weights.curvatures import warn_if_short
        from harness.model.weights.semi_structured import zeroed_as_planned

        warn_if_short(self.name, prepared.facts)
        if emptied := prepared.facts["emptied"]:
            names = ", ".join(emptied[:3]) + (", ..." if len(emptied) > 3 else "")
            count = f"{len(emptied)} of {len(prepared.tensors)} linear layers"
            log.warning(f"{self.name}: a row lost all of its weights in {count}: {names}")
        sites = (site for site in self.sites(model) if site.name in prepared.tensors)
        return zeroed_as_planned(model, ((site, prepared.tensors[site.name], self.pattern) for site in sites))


# --8<-- [start:choice]
def sparsified(
    weight: "Tensor", hessian: "Hessian", pattern: Pattern, sparsity: float, number: "NumberFormat | None" = None
) -> "tuple[Tensor, float]":
    """A weight [out, in] with zeros among it, and the squared error that they leave in its outputs.

    Args:
        number: what the weights that stay are rounded to; None: nothing.
    """
    from harness.model.weights.columns import Columns
    from harness.model.weights.compensation import BLOCK, compensated
    from harness.model.weights.pruning import keep, refuse_width

    refuse_width(weight.shape[1], pattern)
    width = 4 if pattern == "2:4" else BLOCK
    scale = hessian.upper.diagonal().to(weight)  # [in]
    kept = weight != 0  # of columns whose turn has come
    columns = None if number is None else Columns(weight, number)

    def value(column: int, current: "Tensor") -> "Tensor":
        if column % width == 0:
            span = slice(column, column + width)
            kept[:, span] = keep(current[:, span].abs() / scale[span], pattern, sparsity, "matrix")
        values = current[:, column].where(kept[:, column], 0)
        return values if columns is None else columns.round(column, current, values)

    return compensated(weight, hessian, value)


# --8<-- [end:choice]
