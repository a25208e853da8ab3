"""What methods share that move scales of channels into the linear layers that read them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.model.weights.computing import ComputesLinears

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.channel_scales import Feed


@dataclass(frozen=True, kw_only=True)
class ScalesChannels(ComputesLinears, OnText, mixin=True):
    """A method that computes linear layers after moving scales, by calibration text, from what writes their inputs."""

    inner: ClassVar[bool] = False
    """Whether what linear layers write is scaled too; see ``harness.model.channel_scales.feeds``."""

    @property
    def sweeps(self) -> int:
        """Once to look at what is read, once to pass it on."""
        return 2

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose linear layers read what nothing could scale."""
        super().check_model(model, below)
        self.feeds(model)

    def feeds(self, model: "Decoder") -> "list[Feed]":
        """The tensors whose channels are scaled, layer by layer."""
        from harness.model.channel_scales import feeds

        return feeds(model, [site for site, _ in self.declared_layers(model, ())], inner=self.inner)
