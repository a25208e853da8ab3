"""Window attention: in chosen layers a token reads the first few tokens and the last ones."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.prepared import Prepared
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class WindowAttention(InLayers):
    """Let tokens read the first few tokens and the last ones alone, in chosen layers, without training.

    How: queries are taken in blocks as long as the window. A block is multiplied with the keys of two windows, its own
    and the one before it, and with the first keys; nothing else is computed. A decode step reads the last ``window``
    keys and the first ones. The cache stays whole.

    Paper: "Longformer: The Long-Document Transformer", Beltagy et al., arXiv:2004.05150; the first keys, "attention
    sinks", are of Xiao et al., arXiv:2309.17453.

    Parameters:
        window: keys that a token reads, its own included, at least 1.
        sinks: keys of a text's first tokens that every token reads too.

    Limits: what lies between the first tokens and the window reaches a token through other layers, or not at all.
    Texts no longer than window and sinks together are as dense. Layers that slide by themselves are not offered.

    Deviations: no training, and no global tokens besides the first ones.

    Reference: logits equal those of dense attention under the same mask, to rounding, on every supported layout.
    """

    name = "window-attention"
    paper = "arXiv:2004.05150"
    examples = tuple({"sinks": 1, "window": window} for window in (4, 3, 2))
    neutral = {"window": 1 << 30}

    window: Annotated[int, Ge(1)] = 256
    sinks: Annotated[int, Ge(0)] = 4

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with attention that looks back so far."""
        from harness.model.windows import with_windows

        return with_windows(model, self.chosen(model), window=self.window, sinks=self.sinks, name=self.label)
