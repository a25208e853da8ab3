"""A method in one loose file, run without installing anything.

harness run --method ./examples/loose_method.py:Funnel:keep=0.5 --task pocket_choice --limit 200
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from harness import Decoder, Family, Method, Prepared, Savings
from harness.model.surgery import without_blocks


@dataclass(frozen=True, kw_only=True)
class Funnel(Method):
    """Keep the first and the last layers and drop those in the middle, without calibration.

    Parameters:
        keep: the share of the layers that stays, at least two layers; 1 leaves the model dense.

    Limits: the choice looks neither at the model nor at any text.
    """

    name = "funnel"
    family = Family.PRUNING
    savings = Savings.REAL
    examples = ({"keep": 0.75}, {"keep": 0.5})
    neutral = {"keep": 1}

    keep: Annotated[float, Interval(ge=0, le=1)] = 0.75

    def attach(self, model: Decoder, prepared: Prepared) -> AbstractContextManager[Any]:
        """Run the model without its middle layers."""
        layers = len(model.anatomy.blocks)
        kept = min(max(round(self.keep * layers), 2), layers)
        first = (kept + 1) // 2
        return without_blocks(model, range(first, layers - kept + first))
