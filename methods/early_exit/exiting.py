"""What the methods that let tokens leave early have in common: skipped layers still need their keys and values."""

from dataclasses import dataclass

from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.core.errors import MethodError


@dataclass(frozen=True, kw_only=True)
class Exiting(OnText):
    """A method that chooses, token by token, the layer to leave at."""

    directs_layers = True

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse a model that has lost attentions: tokens that skip a layer leave it their keys and values."""
        super().check_below(below)
        for method in below:
            if "attentions" in method.removes:
                raise MethodError(
                    f"{self.name} needs the attention of every layer, and {method.label} takes some out: run them "
                    "apart, or take out whole layers"
                )
