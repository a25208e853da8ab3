"""Mixed precision: more bits for the linear layers that rounding hurts most, under one budget."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from annotated_types import Ge, Interval

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.mixins import OnText
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.weights.computations import Computation, Computations, HasKernels, Layer
from harness.model.weights.mixins import OnLinears

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.study import Study
    from harness.model.weights.formats import NumberFormat
    from harness.model.weights.linear import ReplacementLayer, Site

BITS: Final = (2, 3, 4, 8)
"""What a linear layer's weights may have."""


@dataclass(frozen=True, kw_only=True)
class MixedPrecision(OnLinears, OnText, HasKernels):
    """Round each linear layer's weights to 2, 3, 4 or 8 bits, more where it matters more, without training.

    How: for every linear layer and number of bits it is estimated what rounding that one alone to nearest costs. Then
    bits are given where they save the most for each byte, until the budget is spent, and exchanged between two layers
    where that saves more (the knapsack problem). The mean loss on the calibration text is computed for that choice and
    for the most bits that all layers can have alike within the budget, and the better of the two is taken.

    Paper: "Q-BERT: Hessian Based Ultra Low Precision Quantization of BERT", Shen et al., arXiv:1909.05840, for
    ``sensitivity=hessian``; the others are its usual stand-ins.

    Parameters:
        bits: the budget: what all chosen linear layers take together at so many bits; between two of 2, 3, 4 and 8, so
            far between.
        size: the budget in bytes instead, codes, scales and zero points of all chosen linear layers together; 0: as
            ``bits`` says.
        sensitivity: "loss": how much the mean loss rises on the calibration text, by trying; "fisher": the sum of g^2
            D^2 over weights, with gradients g of the loss and D the change of the weights; "hessian": Omega ||D||^2,
            Omega the magnitude of the mean, plus the standard deviation, of the top eigenvalues of the loss's Hessian
            for the layer's weight, on single windows, of which a tenth is taken.
        group: neighbouring inputs that share a scale; 0: all of an output's.
        symmetric: scales without zero points.
        samples: calibration windows, at least 1.

    Limits: which layer has how many bits is known once they have been looked at, and what computes a layer is settled
    before that: the product is dense over the rounded weights, and the saving is simulated. "loss" runs the model once
    for each linear layer and number of bits: minutes for a small model, hours for a large one; "fisher" runs it once
    for each window. Costs are taken to add up over layers, which they do not at 2 bits. A negative eigenvalue
    (``negative`` in the state) means that the model is at no minimum of this loss, and its curvature says little.

    Deviations: the paper trains the model on in its bits, and reaches 2 bits with at most 2.3 percent of loss; rounding
    alone collapses there. The paper gives bits to layers, this to linear layers; it solves for a budget where the paper
    chooses by hand.

    Reference: the knapsack's choices are within a few percent of exact dynamic programming, eigenvalues those of the
    whole Hessian of a small layer, and a budget of 8 bits is 8 bits in all layers.
    """

    name = "mixed-precision"
    family = Family.QUANTIZATION
    paper = "arXiv:1909.05840"
    savings = Savings.SIMULATED
    calibrates_layers = True
    examples = tuple(
        {"bits": bits, "sensitivity": sensitivity, "group": 16, "samples": 1, "length": 32, "linears": "*.0.*/*.3.*"}
        for bits, sensitivity in ((6, "fisher"), (4, "loss"), (2.5, "hessian"))
    )

    bits: Annotated[float, Interval(ge=2, le=8)] = 4.0
    size: Annotated[int, Ge(0)] = 0
    sensitivity: Literal["loss", "hessian", "fisher"] = "loss"
    group: Annotated[int, Ge(0)] = 128
    symmetric: bool = False
    samples: Annotated[int, Ge(1)] = 8

    def number(self, bits: int) -> "NumberFormat":
        """The number format of weights of so many bits."""
        from harness.model.weights.formats import NumberFormat

        return NumberFormat(bits, self.group or None, self.symmetric, scale="float16")

    def check_model(self, model: "Decoder", below: "tuple[Method, ...]" = ()) -> None:
        """Refuse a group that does not divide the inputs of a linear layer, and a budget that no choice keeps to."""
        super().check_model(model, below)
        sites = self.sites(model)
        self.number(BITS[0]).check_inputs([site.weight.shape[1] for site in sites])
        least = self.bytes_at(sites, dict.fromkeys((site.name for site in sites), BITS[0]))
        if self.size and self.size < least:
            raise MethodError(f"{self.name}: size={self.size} is too little: at {BITS[0]} bits they take {least} bytes")

    def bytes_at(self, sites: "list[Site]", bits: "Mapping[str, int]") -> int:
        """Bytes that linear layers take together, packed, at numbers of bits by name."""
        return sum(self.number(bits[site.name]).nbytes(*site.weight.shape) for site in sites)

    def budget(self, sites: "list[Site]") -> float:
        """The budget in bytes."""
        if self.size:
            return self.size
        totals = [self.bytes_at(sites, dict.fromkeys((site.name for site in sites), bits)) for bits in BITS]
        upper = next(index for index, bits in enumerate(BITS) if self.bits <= bits)
        lower = max(upper - 1, 0)
        share = (self.bits - BITS[lower]) / max(BITS[upper] - BITS[lower], 1)
        return totals[lower] + share * (totals[upper] - totals[lower])

    def sweeps_on(self, model: "Decoder") -> int:
        """The windows' runs through the model: of each choice that is tried, of dense, and of two at the end."""
        return 3 + (len(self.sites(model)) * len(BITS) if self.sensitivity == "loss" else 1)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the bits.

        Returns facts alone: ``bits`` by a linear layer's name; ``bytes``, what they take, of the ``budget``; the mean
        ``loss`` of the next token on the calibration text, in nats, of "dense", of "mixed" and of "uniform", the most
        bits that all could have alike; ``uniform``, whether that is what was taken; and ``negative``, names of linear
        layers with a negative top eigenvalue.

        Raises:
            MethodError: weights or a loss that are not finite, or too little text.
        """
        from harness.model.weights.sensitivity import mean_loss

        windows = [window for window in self.windows(model, study) if window.shape[1] > 1]  # one token has no next
        sites = self.sites(model)
        estimates, negative = self._losses(model, windows, sites)
        budget = self.budget(sites)
        mixed = self._chosen(sites, estimates, budget)
        most = max(
            bits for bits in BITS if self.bytes_at(sites, dict.fromkeys((site.name for site in sites), bits)) <= budget
        )
        choices = {"mixed": mixed, "uniform": {site.name: most for site in sites}}
        loss = {"dense": mean_loss(model, windows)}
        for name, bits in choices.items():
            with self._rounded(sites, bits):
                loss[name] = mean_loss(model, windows)
        better = "mixed" if loss["mixed"] < loss["uniform"] else "uniform"
        facts = {
            "bits": choices[better],
            "bytes": self.bytes_at(sites, choices[better]),
            "budget": int(budget),
            "loss": loss,
            "uniform": len(set(choices[better].values())) == 1,
            "negative": negative,
        }
        return Prepared(facts=facts)

    def _losses(
        self, model: "Decoder", windows: "list[torch.Tensor]", sites: "list[Site]"
    ) -> "tuple[dict[str, dict[int, float]], list[str]]":
        """What rounding each linear layer to each number of bits costs, and those with negative eigenvalues."""
        from harness.model.weights.sensitivity import by_fisher, by_hessian, by_loss

        estimate = {"loss": by_loss, "fisher": by_fisher, "hessian": by_hessian}[self.sensitivity]
        if self.sensitivity == "hessian":
            windows = windows[: max(2, -(-len(windows) // 10))]
        sensitivity = estimate(model, windows, sites, BITS, self.values)
        return sensitivity.losses, sensitivity.negative

    def values(self, site: "Site", bits: int) -> "torch.Tensor":
        """What the weight of a linear layer is at some bits, [out, in]."""
        from harness.model.weights.formats import quantize

        return quantize(site.weight, self.number(bits)).dequantized()

    def _chosen(self, sites: "list[Site]", losses: "dict[str, dict[int, float]]", budget: float) -> dict[str, int]:
        """Bits by linear layer: the knapsack's choice.

        Where more bits cost more than fewer did, the fewer are taken to cost as much: what a text gains by accident is
        not to be had on another.
        """
        from harness.model.weights.knapsack import Option, choose

        def options(site: "Site") -> "list[Option]":
            costs = [max(losses[site.name][more] for more in BITS[index:]) for index in range(len(BITS))]
            sizes = [self.number(bits).nbytes(*site.weight.shape) for bits in BITS]
            return [Option(size, cost) for size, cost in zip(sizes, costs, strict=True)]

        chosen = choose([options(site) for site in sites], budget)
        if chosen is None:
            raise MethodError(f"{self.name}: size={self.size} is less than the linear layers take at {BITS[0]} bits")
        return {site.name: BITS[index] for site, index in zip(sites, chosen, strict=True)}

    def _rounded(self, sites: "list[Site]", bits: "Mapping[str, int]") -> ExitStack:
        """Run the model with rounded weights in place of its own."""
        from harness.model.weights.replaced import Place, replace

        with ExitStack() as undo:
            for site in sites:
                replace(undo, Place(site.module, "weight"), site.stored(self.values(site, bits[site.name])))
            return undo.pop_all()

    def computations(self, layer: Layer, device: str) -> Computations:
        """The float product over the rounded weights, here those of the most bits: a layer's own are chosen later."""
        from harness.model.weights.formats import quantize
        from harness.model.weights.packed_linear import DenseOverValues

        def dense(weight: "torch.Tensor", bias: "torch.Tensor | None") -> "ReplacementLayer":
            return DenseOverValues(quantize(weight, self.number(BITS[-1])), bias, weight.dtype)

        return Computations(Computation("dense product over weights of mixed bits", dense), (), __name__, device)

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let the chosen linear layers run on weights of their bits."""
        from harness.model.weights.formats import quantize
        from harness.model.weights.linear import installed
        from harness.model.weights.packed_linear import DenseOverValues

        def replacement(site: "Site") -> "ReplacementLayer":
            weight = quantize(site.weight, self.number(prepared.facts["bits"][site.name]))
            return DenseOverValues(weight, site.bias, site.weight.dtype)

        return installed((site, replacement(site)) for site in self.sites(model))
