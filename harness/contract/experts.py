"""A layer's experts as transformers holds them: all in one tensor for each projection, beside a router that chooses."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Experts:
    """The experts of one layer, of which each token runs some.

    Attributes:
        module: holds their weights, each [experts, out, in] or [experts, in, out].
        routers: modules, other than linear layers, that multiply a token by one row for each expert to choose them.
    """

    module: "nn.Module"
    routers: "tuple[nn.Module, ...]"

    @property
    def count(self) -> int:
        """How many there are."""
        count: int = self.module._parameters["down_proj"].shape[0]  # type: ignore[union-attr]
        return count

    @property
    def weights(self) -> "list[nn.Parameter]":
        """The matrices of all experts together; biases left out."""
        return [weight for weight in self.module.parameters() if weight.ndim == 3]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a token in one expert."""
        return sum(prod(weight.shape[1:]) for weight in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of one expert's weights."""
        return sum(weight.nbytes for weight in self.weights) // self.count


def experts_in(modules: "Iterable[nn.Module]") -> Experts | None:
    """The experts among some modules and inside them; None where there are none."""
    parts = [part for module in modules for part in module.modules()]
    holder = next((part for part in parts if _holds_experts(part)), None)
    if holder is None:
        return None
    count = holder._parameters["down_proj"].shape[0]  # type: ignore[union-attr]
    return Experts(holder, tuple(part for part in parts if _chooses(part, count)))


def routed_to(modules: "Iterable[nn.Module]", config: Any) -> int:
    """How many experts a token runs, by the account of the modules or else of the configuration."""
    for module in modules:
        for part in module.modules():
            for name in ("top_k", "num_experts_per_tok"):
                if isinstance(number := getattr(part, name, None), int):
                    return number
    return int(config.num_experts_per_tok)


def _holds_experts(module: "nn.Module") -> bool:
    down = module._parameters.get("down_proj")
    return down is not None and down.ndim == 3


def _chooses(module: "nn.Module", experts: int) -> bool:
    from harness.contract.linears import LINEAR

    weight = module._parameters.get("weight")
    return weight is not None and not isinstance(module, LINEAR) and weight.ndim == 2 and weight.shape[0] == experts
