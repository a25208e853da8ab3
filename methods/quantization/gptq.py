"""GPTQ: round weights input by input, and let the inputs to come make up for the error of each."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.families import Family
from harness.contract.mixins import OnText
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.weights.in_groups import NEUTRAL, InGroups
from harness.model.weights.mixins import OnLinears

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.computations import Layer
    from harness.model.weights.linear import ReplacementLayer, Site
    from harness.model.weights.observers import Gram


@dataclass(frozen=True, kw_only=True)
class Gptq(InGroups, OnLinears, OnText):
    """Round the weights of the linear layers to few bits so that their outputs change least, without training.

    How: the layers run one after the other on calibration text, each on what the rounded layers before it give. Of
    every linear layer's inputs x the Hessian H = (2/n) sum x x^T is taken, and U with H^-1 = U^T U. Input by input the
    weights are rounded to nearest, q = Q(w), and the error (w - q) / U_ii is passed on to the weights of later inputs
    along row i of U. The number format, its packing and its products are those of ``int4-weight-only``: what differs is
    which of the neighbouring values a weight becomes. Weights that a method below has set to zero stay zero.

    Paper: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", Frantar et al.,
    arXiv:2210.17323.

    Parameters:
        act_order: inputs with large second moments first, before errors have piled up; scales are static then.
        static_groups: scales are those of the weights as they were; else a group has those of its weights as they are
            when their turn comes, which needs ``act_order=false``.
        in_turn: inside a layer too, each linear layer is rounded on what the rounded ones before it give (the paper's
            code calls it true_sequential); the calibration takes four times the forwards.

    Limits: it multiplies what dense multiplies, so that what it can save is the time of few tokens and memory; which
    product runs is said as for ``int4-weight-only``. It fits the calibration text, which must not be what is scored.
    Where that has fewer tokens than a linear layer has inputs, damping decides the rest, and the run warns. For a model
    whose file had four bits (GGUF) the same holds as for ``int4-weight-only``.

    Deviations: the paper calibrates on 128 windows of 2048 tokens of C4; here the text is the run's calibration text,
    and less of it by default, so that a CPU takes seconds. Sums are kept in single precision and factorised in double;
    where that fails with a damping of 0.01, it is tried with ten times that, up to 1, and the state says so. The head
    stays as it is.

    Reference: with a diagonal Hessian it equals rounding to nearest bit for bit; the errors that were passed on sum up
    to the error of the outputs in double precision; on correlated inputs it errs less than rounding to nearest.
    """

    name = "gptq"
    family = Family.QUANTIZATION
    paper = "arXiv:2210.17323"
    calibrates_layers = True
    examples = (
        {"bits": 8, "group": 16, "samples": 2, "length": 48},
        {"group": 16, "samples": 2, "length": 48},
        {"group": 16, "act_order": False, "static_groups": False, "in_turn": False, "samples": 2, "length": 48},
        {"bits": 3, "group": 0, "symmetric": True, "samples": 2, "length": 48},
    )
    neutral = {"bits": NEUTRAL}

    act_order: bool = True
    static_groups: bool = True
    in_turn: bool = True

    def check(self) -> None:
        """Refuse an order of inputs for which scales are not known before their turn."""
        super().check()
        if self.act_order and not self.static_groups:
            raise MethodError(f"{self.name}: static_groups=false needs the inputs in their own order: act_order=false")

    @property
    def needs_preparation(self) -> bool:
        """Whether anything is rounded."""
        return self.bits != NEUTRAL

    @property
    def sweeps(self) -> int:
        """Once for each group of linear layers that is looked at, once to see what the rounded layer gives."""
        return 5 if self.in_turn else 2

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the codes.

        Returns tensors: by a linear layer's name, its packed ``codes``, ``scale`` and ``zero``; facts: ``tokens``, how
        many were looked at, ``error``, the squared error of the outputs in parts of what losing all weights would be, a
        mean over linear layers, ``damping``, by name where it is not 0.01, and ``short``, names of linear layers with
        more inputs than they read tokens.

        Raises:
            MethodError: a group that does not divide, or activations or weights that are not finite.
        """
        from harness.model.weights.columns import rounded_in_turn
        from harness.model.weights.curvatures import Curvatures
        from harness.model.weights.observers import Gram, calibrate
        from harness.model.weights.replaced import zeros
        from harness.model.weights.stored_codes import stored

        tensors: dict[str, Tensor] = {}
        curvatures = Curvatures(self.act_order)

        def change(site: "Site", gram: "Gram") -> "Tensor":
            hessian, weight = curvatures.hessian(site, gram), site.weight.float()
            kept = weight != 0 if zeros(site.module) else None
            new, error = rounded_in_turn(weight, hessian, self.number, static=self.static_groups, kept=kept)
            curvatures.add(hessian, weight, error)
            tensors.update(stored(site.name, new))
            return new.dequantized()

        chosen = [site for site, _ in self.declared_layers(model, ())]
        tokens = calibrate(model, self.windows(model, study), chosen, Gram, change, in_turn=self.in_turn)
        return Prepared(tensors, curvatures.facts(tokens))

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let the chosen linear layers run on their codes, by what the plan of the run says, or is fastest here."""
        from harness.model.weights.curvatures import warn_if_short
        from harness.model.weights.kernel_plan import computation
        from harness.model.weights.linear import installed
        from harness.model.weights.stored_codes import restored
        from harness.model.weights.weight_only import computations

        def replacement(site: "Site", layer: "Layer") -> "ReplacementLayer":
            device = str(site.weight.device)
            weight = restored(site.name, self.number, layer.inputs, prepared.tensors).to(device)
            ways = computations(layer, device, self.number, weight)
            return computation(self, model, site, layer, ways).make(site.weight, site.bias)

        warn_if_short(self.name, prepared.facts)
        return installed((site, replacement(site, layer)) for site, layer in self.declared_layers(model, ()))
