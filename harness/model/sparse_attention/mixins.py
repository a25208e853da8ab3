"""What methods that choose pairs of queries and keys share: which layers they are for, and which models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Indices
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class ChoosesPairs(Method, mixin=True):
    """A method with an attention of its own, in the layers that read all keys."""

    family = Family.SPARSE
    chooses_keys = True

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose attention cannot be replaced, layers that it lacks, and such as slide by themselves."""
        from harness.model.attention import require_attendable

        super().check_model(model, below)
        require_attendable(model, self.chosen(model))

    def chosen(self, model: "Decoder") -> tuple[int, ...]:
        """The layers that this attention is for.

        Raises:
            MethodError: there is none.
        """
        from harness.model.attention import full_layers

        if not (full := full_layers(model)):
            raise MethodError(f"{self.name}: every layer of this model has a sliding window already")
        return full


@dataclass(frozen=True, kw_only=True)
class InLayers(ChoosesPairs, mixin=True):
    """A method with an attention of its own in layers that may be named.

    Parameters:
        layers: in these decoder layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.
    """

    layers: Indices = ()

    def chosen(self, model: "Decoder") -> tuple[int, ...]:
        """The layers named, or all that read all keys.

        Raises:
            MethodError: a layer that is named does not.
        """
        full = super().chosen(model)
        if wrong := [layer for layer in self.layers if layer not in full]:
            raise MethodError(
                f"{self.name}: layer {wrong[0]} is none that reads all keys; these do: {', '.join(map(str, full))}"
            )
        return self.layers or full
