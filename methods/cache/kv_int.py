"""A cache in few bits: keys rounded by channel, values by token, the last tokens as they are."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, MultipleOf

from harness.contract.decoder import Decoder
from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Bits
from harness.contract.prepared import Prepared

if TYPE_CHECKING:
    from harness.model.cache.rounded_layer import Rounding


@dataclass(frozen=True, kw_only=True)
class KvInt(Method):
    """Hold the cache of layers that read all keys in 2, 4 or 8 bits, and the last tokens' part as it is.

    How: keys are rounded by channel over ``group`` tokens, since some of their channels are large in all tokens; values
    by token over as many channels. Codes are packed, each group has its least number and its step in the model's number
    format. Once the prompt was read, and after every token that is written, whole groups of tokens that have left the
    last ``residual`` are rounded. Attention reads the numbers that the codes stand for.

    Paper: "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", Liu et al., arXiv:2402.02750.

    Parameters:
        bits: of a number.
        group: tokens, and channels, that share a scale; a multiple of 4. A head whose width it does not divide takes
            the largest common divisor as channels.
        residual: the last tokens that are never rounded; texts that are no longer are as dense.

    Limits: the saving is memory alone: codes are turned into numbers for every step, which takes time. The prompt is
    read in full precision, and scoring a text in one forward never reads the cache, so both are as dense.

    Deviations: values are rounded together with the keys of the same tokens, where KIVI rounds them one by one, and the
    window is never shorter than ``residual``, where KIVI's of keys is. No fused kernel multiplies codes. transformers'
    own quantized cache is not offered: its integers need quanto or hqq beside it, it rounds keys as it does values, and
    it rounds the whole prompt at once, so that no window stays as it was.

    Reference: decoding equals attention over keys and values that were rounded by a plain formula.
    """

    name = "kv-int"
    family = Family.CACHE
    paper = "arXiv:2402.02750"
    phases = frozenset({Phase.DECODE})
    chooses_keys = True
    examples = tuple({"bits": bits, "group": 8, "residual": 0} for bits in (8, 4, 2))
    neutral = {"residual": 1 << 30}

    bits: Bits = 4
    group: Annotated[int, Ge(4), MultipleOf(4)] = 32
    residual: Annotated[int, Ge(0)] = 128

    @property
    def takes_back(self) -> bool:
        """No: tokens that are taken back have been rounded together with others."""
        return False

    def check_model(self, model: Decoder, below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose cache cannot be rounded."""
        from harness.model.cache.rounded import require_roundable

        super().check_model(model, below)
        require_roundable(model, self.name)

    def attach(self, model: Decoder, prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with a cache that is rounded."""
        from harness.model.cache.rounded import rounded

        return rounded(model, self._rounding(), name=self.name)

    def _rounding(self) -> "Rounding":
        from harness.model.cache.rounded_layer import Rounding

        return Rounding(self.bits, self.group, self.residual)
