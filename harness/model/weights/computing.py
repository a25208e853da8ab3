"""What methods share that are another computation of linear layers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.weights.computations import HasKernels
from harness.model.weights.mixins import OnLinearsAndHead

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class ComputesLinears(OnLinearsAndHead, HasKernels, mixin=True):
    """A method that is another computation of some of the linear layers, which its ``computations`` say all about."""

    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[None]:
        """Let the chosen linear layers run by what the plan of the run says, or is fastest here."""
        from harness.model.weights.kernel_plan import computation
        from harness.model.weights.linear import installed

        chosen = ((site, computation(self, model, site, layer)) for site, layer in self.declared_layers(model, ()))
        return installed((site, each.make(site.weight, site.bias)) for site, each in chosen)
