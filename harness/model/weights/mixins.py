"""Parameters that methods on linear layers share: which of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.method import Method
from harness.contract.parameters import Indices, Patterns
from harness.core.errors import MethodError
from harness.model.weights.computations import HasKernels

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

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse names and layers that fit nothing, and linear layers that a method below computes."""
        super().check_model(model, below)
        chosen = {site.place: site.name for site in self.sites(model)}
        for method in below:
            if not isinstance(method, HasKernels):
                continue
            shared = [chosen[site.place] for site in method.sites(model) if site.place in chosen]
            if shared and isinstance(self, HasKernels):
                raise MethodError(
                    f"{method.label} and {self.label} would both compute {shared[0]}: run them apart, or give each its "
                    "own layers or linears"
                )
            if shared:
                raise MethodError(
                    f"{self.name} changes the weight of {shared[0]}, which {method.name} before it computes: "
                    f"write {self.name}+{method.name}"
                )


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
