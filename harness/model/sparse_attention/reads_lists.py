"""What methods share whose queries read lists of keys."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.sparse_attention.mixins import ChoosesPairs
from harness.model.weights.computations import HasOwnKernel

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class ReadsLists(ChoosesPairs, HasOwnKernel, mixin=True):
    """A method whose queries read lists of keys, which saves where the kernel for lists runs."""

    def unable(self, model: "Decoder", device: str) -> str | None:
        """Why the kernel does not run for a model on this device, in words; None where it does."""
        from harness.model.sparse_attention.lists import unable

        return unable(device, model.module.dtype)

    @property
    def kernel(self) -> str:
        """The kernel that runs, as the record calls it."""
        from harness.model.sparse_attention.lists import kernel_name

        return kernel_name()
