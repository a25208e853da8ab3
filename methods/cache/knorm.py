"""Knorm: keep the keys of small norm, which attention reads most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from harness.model.cache.mixins import Presses

if TYPE_CHECKING:
    import torch

    from harness.model.cache.press import Entries


@dataclass(frozen=True, kw_only=True)
class Knorm(Presses):
    """Keep a share of the prompt's keys and values, those with the keys of least norm, once the prompt was read.

    How: in each layer and each key and value head, the entries with the smallest ||k|| stay, as many as the share says;
    everything that comes after the prompt stays. Keys of small norm attract attention, found by looking at models.

    Paper: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", Devoto et al., arXiv:2406.11430.

    Parameters:
        keep: the share of the prompt's entries that stays, at least one entry; 1 leaves the model dense.

    Limits: scoring a text in one forward never reads the cache, so it is as dense. The prompt is read in full: the time
    to the first token does not fall.

    Deviations: all layers are treated alike.

    Reference: decoding equals, to rounding, a dense forward without a cache in which exactly these entries are masked.
    """

    name = "knorm"
    paper = "arXiv:2406.11430"
    examples = ({"keep": 0.75}, {"keep": 0.5}, {"keep": 0.25})
    neutral = {"keep": 1.0}

    keep: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def choose(self, entries: "Entries") -> "torch.Tensor":
        """The entries whose keys have the least norm, [rows, kv heads, kept]."""
        return entries.select(-entries.keys.norm(dim=-1), round(self.keep * len(entries)))
