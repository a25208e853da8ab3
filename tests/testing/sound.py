"""A sound method, which passes every check: what the faulty ones spoil."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.model.surgery import without_branches


@dataclass(frozen=True, kw_only=True)
class Sound(Method):
    """Run the model without its last MLPs."""

    name = "sound"
    family = Family.PRUNING
    examples = ({"count": 1}, {"count": 2})
    neutral = {"count": 0}

    count: Annotated[int, Ge(0)] = 1

    def attach(self, model, prepared):
        layers = len(model.anatomy.blocks)
        return without_branches(model, mlp=range(layers - self.count, layers))
