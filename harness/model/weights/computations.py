"""What may compute a linear layer: the dense product, or kernels that save work, as methods declare them.

Nothing here needs torch: methods declare what they have before a model is there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.model.weights.linear import ReplacementLayer, Site

DENSE: Final = "dense"
"""What the dense product is called where a kernel is asked for by name."""
STORED: Final = "stored"
"""What stands in a linear layer's place while a model is written, and computes nothing."""
GRID: Final = 20
"""Shares of zeros are rounded down to whole parts of one in so many: to 5 percent."""
TOKENS: Final = (1, 8, 32, 128)
"""Rows of a product at which ways to compute a layer are compared: a decoding step, drafts, prompts."""
STARTS: Final = tuple(ceil(sqrt(few * many)) for few, many in pairwise(TOKENS))
"""Where one product may take over from another: a number of tokens goes with the nearest of ``TOKENS`` by ratio."""


@dataclass(frozen=True)
class Layer:
    """A linear layer as far as the time of its product depends on it.

    Attributes:
        out, inputs: the shape of its weight, [out, in].
        dtype: the model's, such as "bfloat16".
        zeros: the share of its blocks that are zero, rounded down to 5 percent.
        rows: outputs in a block; where it is 1, zeros are two of each four neighbours (2:4).
    """

    out: int
    inputs: int
    dtype: str
    zeros: float = 0.0
    rows: int = 1

    @classmethod
    def of(cls, weight: "torch.Tensor", zeros: float = 0.0, rows: int = 1) -> "Layer":
        """The layer with a weight of shape [out, in], of which only shape and type are read."""
        share = int(zeros * GRID + 1e-6) / GRID
        out, inputs = weight.shape
        return cls(out, inputs, str(weight.dtype).removeprefix("torch."), share, rows)

    @property
    def label(self) -> str:
        """What a person reads: outputs by inputs, the type, and the zeros where there are any."""
        blocks = f"zero in blocks of {self.rows}x1" if self.rows > 1 else "zero, 2:4"
        zeros = f", {self.zeros:.0%} {blocks}" if self.rows > 1 or self.zeros else ""
        return f"{self.out}x{self.inputs} {self.dtype}{zeros}"


@dataclass(frozen=True)
class Computation:
    """One way to compute a linear layer.

    Attributes:
        name: as the record writes it.
        make: the replacement for a linear layer, from its weight [out, in] and bias [out].
        why_not: why it cannot run here, in words; None where it can.
        elsewhere: it is for another kind of device.
        by_tokens: of what changes with the number of tokens, the product for few, where the other takes over, and the
            other.
        multiplies_floats: it keeps packed weights and makes floats of them, part by part, whenever it runs.
    """

    name: str
    make: "Callable[[torch.Tensor, torch.Tensor | None], ReplacementLayer]"
    why_not: str | None = None
    elsewhere: bool = False
    by_tokens: "tuple[Computation, int, Computation] | None" = None
    multiplies_floats: bool = False

    def at(self, tokens: int) -> "Computation":
        """What multiplies so many tokens."""
        if self.by_tokens is None:
            return self
        few, start, many = self.by_tokens
        return few if tokens < start else many

    def joined(self, start: int, many: "Computation") -> "Computation":
        """This one for fewer than ``start`` tokens, and another one from there."""

        def make(weight: "torch.Tensor", bias: "torch.Tensor | None") -> "ReplacementLayer":
            from harness.model.weights.by_tokens import ByTokens

            return ByTokens(self.make(weight, bias), start, many.make(weight, bias), name)

        name = f"{self.name}; {many.name} from {start} tokens"
        return Computation(name, make, by_tokens=(self, start, many))


@dataclass(frozen=True)
class Computations:
    """All ways in which a method computes a linear layer: of the same answers, up to rounding.

    Attributes:
        dense: the float product over the values that the method leaves.
        kernels: what saves work, the best of a device first.
        source: the module that they come from.
        device: where they compute.
        equal_work: all multiply as often, so that one may take over from another where there are more tokens.
        stored: what is written of the layer; None where its weight has no number format that a file could have.
    """

    dense: Computation
    kernels: tuple[Computation, ...]
    source: str
    device: str = "cpu"
    equal_work: bool = True
    stored: Computation | None = None

    @property
    def able(self) -> tuple[Computation, ...]:
        """The kernels that can run here."""
        return tuple(kernel for kernel in self.kernels if kernel.why_not is None)

    @property
    def joined(self) -> "tuple[Computation, ...]":
        """Pairs of those that can run here and the dense product, one for few tokens and one for many."""
        pairs = permutations((*self.able, self.dense), 2) if self.equal_work else ()
        return tuple(few.joined(start, many) for few, many in pairs for start in STARTS)

    @property
    def why_dense(self) -> str | None:
        """Why no kernel can run here, in words; None where one can."""
        if self.able:
            return None
        near = [kernel for kernel in self.kernels if not kernel.elsewhere] or self.kernels
        return near[-1].why_not if near else f"there is no kernel in place of a {self.dense.name}"

    def named(self, name: str) -> Computation | None:
        """The computation of that name, which may be ``DENSE`` or ``STORED``; None where there is none."""
        if name in (DENSE, STORED):
            return self.dense if name == DENSE else self.stored
        return next((each for each in (self.dense, *self.kernels, *self.joined) if each.name == name), None)


def not_on_cpu(device: str) -> str | None:
    """Why what is for a CPU cannot run on a device; None where it can."""
    return None if device.startswith("cpu") else f"it is for a CPU, and the model is on {device}"


class ChoosesKernels(ABC):
    """A method that may have kernels for linear layers: where one is faster, the plan of a run says so."""

    name: ClassVar[str]

    @abstractmethod
    def computations(self, layer: Layer, device: str) -> Computations:
        """What may compute a layer on a device."""

    @abstractmethod
    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The linear layers that it may have kernels for, by what is declared: no weight is read.

        Args:
            below: the methods that are attached before this one.
        """


class HasKernels(ChoosesKernels):
    """A method that computes linear layers, on kernels or densely, so that no other one can."""

    @abstractmethod
    def sites(self, model: "Decoder") -> "list[Site]":
        """The linear layers that it computes."""

    def declared_layers(self, model: "Decoder", below: "Sequence[Method]") -> "list[tuple[Site, Layer]]":
        """The linear layers as this method will compute them, by what is declared: no weight is read.

        Args:
            below: the methods that are attached before this one.
        """
        return [(site, Layer.of(site.weight)) for site in self.sites(model)]


class HasOwnKernel(ABC):
    """A method that saves where a kernel of its own runs, for something else than linear layers."""

    @abstractmethod
    def unable(self, model: "Decoder", device: str) -> str | None:
        """Why the kernel does not run for a model on this device, in words; None where it does."""

    @property
    @abstractmethod
    def kernel(self) -> str:
        """The kernel that runs on this machine, as the record calls it."""
