"""Parameters that methods on linear layers share: which of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.method import Method
from harness.contract.parameters import Indices, Patterns

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
