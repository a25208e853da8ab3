"""Parameters that methods share which put weights into integers of few bits, in groups of inputs: which integers."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final

from annotated_types import Ge

from harness.contract.method import Method
from harness.core.errors import MethodError
from harness.model.weights.computations import Computations, HasKernels, Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.contract.decoder import Decoder
    from harness.model.weights.formats import NumberFormat
    from harness.model.weights.linear import Site

NEUTRAL: Final = 16
"""Bits that leave a weight as it is."""


@dataclass(frozen=True, kw_only=True)
class FewBits(Method, HasKernels, mixin=True):
    """A method that puts the weights of linear layers into integers of few bits, with zero points.

    Parameters:
        bits: of a weight, 2 to 8; 16 leaves the weights as they are.
        group: neighbouring inputs that share a scale; it divides the inputs of every linear layer chosen; 0: all of an
            output's.
    """

    bits: int = 4
    group: Annotated[int, Ge(0)] = 128

    def check(self) -> None:
        """Refuse bits that no format has."""
        super().check()
        if self.bits != NEUTRAL and not 2 <= self.bits <= 8:
            raise MethodError(f"{self.name}: bits={self.bits} is not valid: give 2 to 8, or {NEUTRAL} for no rounding")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a group that does not divide the inputs of a linear layer."""
        super().check_model(model, below)
        if layers := self.declared_layers(model, below):
            self.number.check_inputs([layer.inputs for _, layer in layers])

    @property
    def number(self) -> "NumberFormat":
        """The number format of the weights."""
        from harness.model.weights.formats import NumberFormat

        return NumberFormat(self.bits, self.group or None, symmetric=False, scale="float16")

    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The chosen linear layers; none where their weights stay as they are."""
        return [] if self.bits == NEUTRAL else super().declared_layers(model, below)

    def computations(self, layer: Layer, device: str) -> Computations:
        """The products with packed weights, and the float product over the rounded ones."""
        from harness.model.weights.weight_only import computations

        return computations(layer, device, self.number)


@dataclass(frozen=True, kw_only=True)
class InGroups(FewBits, mixin=True):
    """A method that puts the weights of linear layers into integers of few bits, with zero points or without.

    Parameters:
        symmetric: scales without zero points: of 4 bits, -7 to 7 times absmax over 7.
    """

    symmetric: bool = False

    @property
    def number(self) -> "NumberFormat":
        """The number format of the weights."""
        return replace(super().number, symmetric=self.symmetric)
