"""What a method's preparation leaves behind: tensors as safetensors, everything else as JSON, never pickle."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepared:
    """The state of a prepared method.

    Attributes:
        tensors: named tensors, such as router weights or masks.
        facts: JSON values, such as chosen layers and their scores.
    """

    tensors: dict[str, "torch.Tensor"] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
