"""Window attention: in chosen layers a token reads the first few tokens and the last ones."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class WindowAttention(Method):
    """Let tokens read the first few tokens and the last ones alone, in chosen layers, without training.

    How: queries are taken in blocks as long as the window. A block is multiplied with the keys of two windows, its own
    and the one before it, and with the first keys; nothing else is computed. A decode step reads the last ``window``
    keys and the first ones. The cache stays whole.

    Paper: "Longformer: The Long-Document Transformer", Beltagy et al., arXiv:2004.05150; the first keys, "attention
    sinks", are of Xiao et al., arXiv:2309.17453.

    Parameters:
        window: keys that a token reads, its own included, at least 1.
        sinks: keys of a text's first tokens that every token reads too.
        layers: in these decoder layers alone (``layers=3/4/7``, counted from 0); in all where it is empty.

    Limits: what lies between the first tokens and the window reaches a token through other layers, or not at all.
    Texts no longer than window and sinks together are as dense. Layers that slide by themselves are not offered.

    Deviations: no training, and no global tokens besides the first ones.

    Reference: logits equal those of dense attention under the same mask, to rounding, on every supported layout.
    """

    name = "window-attention"
    family = Family.SPARSE
    paper = "arXiv:2004.05150"
    chooses_keys = True
    examples = tuple({"sinks": 1, "window": window} for window in (4, 3, 2))
    neutral = {"window": 1 << 30}

    window: Annotated[int, Ge(1)] = 256
    sinks: Annotated[int, Ge(0)] = 4
    layers: Indices = ()

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose attention cannot be replaced, layers that it lacks, and such as slide by themselves."""
        from harness.model.attention import require_attendable

        super().check_model(model, below)
        require_attendable(model, self._chosen(model))

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with attention that looks back so far."""
        from harness.model.attention import attending

        return attending(model, self.attend, self._chosen(model), name=self.label)

    def attend(
        self,
        layer: int,
        q: "torch.Tensor",
        k: "torch.Tensor",
        v: "torch.Tensor",
        mask: "torch.Tensor | None",
        scale: float,
    ) -> "tuple[torch.Tensor, int] | None":
        """The product within the window, and its pairs; see ``harness.model.attention.Attention``."""
        from harness.model.windows import windowed

        return windowed(q, k, v, mask, scale, window=self.window, sinks=self.sinks)

    def _chosen(self, model: "Decoder") -> tuple[int, ...]:
        from harness.model.attention import full_layers

        full = full_layers(model)
        if not full:
            raise MethodError(f"{self.name}: every layer of this model has a sliding window already")
        if wrong := [layer for layer in self.layers if layer not in full]:
            raise MethodError(
                f"{self.name}: layer {wrong[0]} is none that reads all keys; these do: {', '.join(map(str, full))}"
            )
        return self.layers or full
