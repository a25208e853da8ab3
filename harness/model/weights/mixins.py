"""Parameters that methods on linear layers share: which layers, and how many zeros of which shape."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.method import Method
from harness.contract.parameters import Indices, Pattern, Patterns, Sparsity
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.weights.linear import Site


@dataclass(frozen=True, kw_only=True)
class OnLinears(Method, mixin=True):
    """A method that changes some of the linear layers of a model.

    Parameters:
        linears: names of the linear layers, with wildcards (``linears=*.mlp.*/*.o_proj``).
        layers: in these decoder layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.
    """

    linears: Patterns = ("*",)
    layers: Indices = ()

    def sites(self, model: "Decoder") -> "list[Site]":
        """The chosen linear layers.

        Raises:
            MethodError: a name or a layer that fits nothing, or a linear layer that another method replaced.
        """
        from harness.model.weights.linear import sites

        return sites(model, self.linears, layers=self.layers)


@dataclass(frozen=True, kw_only=True)
class OnLinearsAndHead(OnLinears, mixin=True):
    """A method that changes some of the linear layers of a model, the head among them where it is asked for.

    Parameters:
        head: the language-model head too, which costs more quality than a layer does.
    """

    head: bool = False

    def sites(self, model: "Decoder") -> "list[Site]":
        """The chosen linear layers, the head last.

        Raises:
            MethodError: a name or a layer that fits nothing, or a linear layer that another method replaced.
        """
        from harness.model.weights.linear import sites

        return sites(model, self.linears, layers=self.layers, head=self.head)


@dataclass(frozen=True, kw_only=True)
class Zeros(Method, mixin=True):
    """A method that sets weights to zero.

    Parameters:
        sparsity: the share of weights that go, from 0 to below 1; one for all layers, or one for each
            (``sparsity=0.5/0.6/0.7/0.7``).
        pattern: the shape of the zeros: "unstructured"; "2:4" (two of each four neighbours, sparsity 0.5); "4x1" or
            "16x1" (blocks of 4 or 16 outputs of one input, which ``block-sparse`` can skip).
    """

    sparsity: Sparsity = (0.5,)
    pattern: Pattern = "unstructured"

    def check(self) -> None:
        """Refuse a 2:4 pattern with a sparsity that is not one half."""
        super().check()
        if self.pattern == "2:4" and set(self.sparsity) - {0, 0.5}:
            raise MethodError(f"{self.name}: pattern=2:4 has sparsity=0.5, not {'/'.join(map(str, self.sparsity))}")

    def sparsity_by_layer(self, model: "Decoder") -> list[float]:
        """The sparsity of each layer of the dense model.

        Raises:
            MethodError: several are given, and not one for each layer.
        """
        from harness.model.weights.pruning import sparsity_by_layer

        return sparsity_by_layer(model, self.sparsity)
