"""Streaming: keep the first few keys and values, and those of the last tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.core.errors import MethodError
from harness.model.cache.mixins import Presses

if TYPE_CHECKING:
    import torch

    from harness.model.cache.press import Entries


@dataclass(frozen=True, kw_only=True)
class Streaming(Presses):
    """Keep the first few keys and values and those of the last tokens, so that the cache stops growing.

    How: once the prompt was read, and after every token that is written, each layer keeps its first ``sinks`` entries,
    on which attention rests whatever they say, and its last ``window`` entries. The rest is gone for good.

    Paper: "Efficient Streaming Language Models with Attention Sinks", Xiao et al., arXiv:2309.17453.

    Parameters:
        sinks: entries of the first tokens that stay.
        window: entries of the last tokens that stay, at least 1 and no fewer than ``sinks``. Texts that are no longer
            than both are as dense.

    Limits: what lies between cannot be recalled. The prompt is read in full, and scoring a text in one forward never
    reads the cache, so both are as dense.

    Deviations: the paper numbers positions within the cache, so that texts longer than the model's positions can be
    read; here entries keep the positions that they had in the text, which ends where the model's positions do. The
    paper's code reads a prompt by the window too.

    Reference: decoding equals, to rounding, a dense forward without a cache in which exactly these entries are masked.
    """

    name = "streaming"
    paper = "arXiv:2309.17453"
    when = ("prefill", "decode")
    examples = tuple({"sinks": 1, "window": window} for window in (8, 6, 4))
    neutral = {"window": 1 << 30}

    sinks: Annotated[int, Ge(0)] = 4
    window: Annotated[int, Ge(1)] = 256

    def check(self) -> None:
        """Refuse a window of fewer tokens than the sinks: what is being written would be the smaller part."""
        if self.window < self.sinks:
            raise MethodError(
                f"{self.name}: window={self.window} is smaller than sinks={self.sinks}; give window={self.sinks} or "
                "more, or fewer sinks"
            )

    def choose(self, entries: "Entries") -> "torch.Tensor":
        """The first and the last entries, [rows, kv heads, kept]."""
        return entries.ends(self.sinks, self.window)
