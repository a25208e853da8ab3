"""What decides which entries of a cache stay, and what it is given to decide from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.core.errors import MethodError
from harness.model.cache.product import Product
from harness.model.given import unusable


@dataclass(frozen=True)
class Entries:
    """What a layer's cache holds for some rows that hold equally much; without padding, so that none can be kept.

    Attributes:
        layer: index of the dense layer, of ``layers``.
        rows: indices of the rows in their batch.
        keys, values: as attention reads them, keys after rotary embedding, [rows, kv heads, entries, head width].
        positions: of which token of its row each entry is, from 0, ascending, [rows, kv heads, entries].
        states: hidden states that went into the attention in this forward, those of the last entries, [rows, tokens,
            width].
        queries: their queries, after rotary embedding, [rows, heads, tokens, head width], where they are asked for
            (``pressed``).
        product: how attention multiplies them with keys, likewise.
        memory: a number for each entry that the press wrote when it was asked before, 0 of a new one, float32 [rows, kv
            heads, entries], where it is asked for (``pressed``). What is written into it, in place, stays with the
            entry until that goes; one that accumulates attention adds to it: ``entries.memory.add_(received)``.
        decoding: False right after the prompt was read, True in decode steps.
    """

    layer: int
    layers: int
    rows: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    queries: torch.Tensor | None
    product: Product | None
    memory: torch.Tensor | None
    decoding: bool

    def __len__(self) -> int:
        """Entries of each head of each row."""
        return self.keys.shape[2]

    def select(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        """The entries with the highest scores, in the form in which a press returns them.

        Args:
            scores: [rows, kv heads, entries].
            count: how many stay in each head, at least one; more than there are is all of them.
        """
        best = scores.topk(min(max(count, 1), len(self)), dim=-1).indices
        return best.sort(dim=-1).values

    def ends(self, first: int, last: int) -> torch.Tensor:
        """The first and the last entries, in the form in which a press returns them."""
        index = torch.arange(len(self), device=self.keys.device)
        if first + last < len(self):
            index = torch.cat([index[:first], index[len(self) - last :]])
        return index.expand(*self.keys.shape[:2], -1)


Press = Callable[[Entries], torch.Tensor]
"""Which entries of a layer stay: their indices, ascending, each once, as integers [rows, kv heads, kept], so that every
head keeps equally many.
"""


def checked(indices: Any, entries: Entries, name: str) -> torch.Tensor:
    """What a press returned, if it can be that.

    Raises:
        MethodError: it is of another shape or type, or names entries that do not exist, or one twice, or none.
    """
    rows, heads, count, _ = entries.keys.shape
    if not isinstance(indices, torch.Tensor) or indices.dtype not in (torch.int64, torch.int32):
        raise MethodError(
            f"{name}: a press returns one tensor of integers, [rows, kv heads, kept], where every head keeps as many "
            f"entries, not {_described(indices)}"
        )
    if kind := unusable(indices, entries.keys.device):
        raise MethodError(f"{name}: a press returns a dense tensor where the keys are, not {kind}")
    if indices.ndim != 3 or indices.shape[:2] != (rows, heads):
        raise MethodError(
            f"{name}: a press returns [rows, kv heads, kept], here [{rows}, {heads}, kept], not {list(indices.shape)}"
        )
    if not indices.shape[2]:
        raise MethodError(f"{name}: the press kept no entry of layer {entries.layer}, and attention needs one at least")
    indices = indices.long()
    steps = indices.diff(dim=-1)
    if indices.min() < 0 or indices.max() >= count:
        wrong = indices[(indices < 0) | (indices >= count)][0]
        raise MethodError(
            f"{name}: the press kept entry {int(wrong)} of layer {entries.layer}, whose entries are 0 to {count - 1}"
        )
    if (steps <= 0).any():
        twice = bool((indices.sort(dim=-1).values.diff(dim=-1) == 0).any())
        what = "an entry twice" if twice else "entries that do not ascend"
        raise MethodError(
            f"{name}: the press returned {what} for layer {entries.layer}: they ascend, each is named once"
        )
    kept: torch.Tensor = indices
    return kept


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"one of {value.dtype}"
    if isinstance(value, Sequence) and all(isinstance(part, torch.Tensor) for part in value):
        return f"{len(value)} tensors of the shapes {[list(part.shape) for part in value]}"
    return f"a {type(value).__name__}"
