"""The baseline: the model as it is."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """The unchanged model, which every other method is compared with.

    Its answers and scores are those that lm-eval gives for the same flags, and its cost is what the others
    save from.

    Parameters: none.
    """

    name = "dense"
    family = Family.BASELINE
    spans_devices = True
    exact = True
    savings = Savings.NONE
    stackable = False
    neutral = {}

    def attach(self, model: "Decoder", prepared: "Prepared") -> nullcontext[None]:
        """Change nothing."""
        return nullcontext()
