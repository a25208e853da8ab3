"""Every other: drop the attention or the MLP of every second layer from some depth on."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval
from harness import Decoder, Family, Method, Prepared, Savings, without_branches


@dataclass(frozen=True, kw_only=True)
class EveryOther(Method):
    """Drop the attention or the MLP of every second layer from some depth on, without calibration.

    How: of the layers from ``start`` on, the first, third, fifth and so on lose the chosen branch. It is really
    removed: not computed, and a dropped attention keeps no keys and values.

    Parameters:
        start: the depth, as a share of the layers, from which on branches go; 1 leaves the model dense.
        unit: which branch goes, "attention" or "mlp".

    Limits: the choice looks neither at the model nor at any text, so it is a control for methods that do. At least
    one attention of each kind (full, sliding window) must stay.

    Reference: no paper proposes it; its tests are the harness's checks.
    """

    name = "every-other"
    family = Family.PRUNING
    savings = Savings.REAL
    examples = ({"start": 0.75}, {"start": 0.5}, {"start": 0.25})
    neutral = {"start": 1}

    start: Annotated[float, Interval(ge=0, le=1)] = 0.5
    unit: Literal["attention", "mlp"] = "mlp"

    def attach(self, model: Decoder, prepared: Prepared) -> AbstractContextManager[Any]:
        """Run the model without the chosen branches."""
        layers = len(model.anatomy.blocks)
        chosen = range(round(self.start * layers), layers, 2)
        return without_branches(model, **{self.unit: chosen})
