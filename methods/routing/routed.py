"""What the methods that send inputs along paths of layers have in common: the engine needs all layers."""

from dataclasses import dataclass

from harness.contract.method import Method
from harness.core.errors import MethodError


@dataclass(frozen=True, kw_only=True)
class Routed(Method):
    """A method that chooses which whole layers run."""

    directs_layers = True

    @property
    def takes_back(self) -> bool:
        """Not from the cache of paths."""
        return False

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse a model that has lost layers: paths are of all of them."""
        super().check_below(below)
        for method in below:
            if "layers" in method.removes:
                raise MethodError(
                    f"{self.name} needs all of the model's layers, and {method.label} takes some out: run them apart, "
                    f"or name the layers and stack it after, as in {self.name}+{method.name}:layers=1"
                )
