"""A layer of the cache whose older keys and values are rounded, and whose last ones are as they were."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch

from harness.core.errors import MethodError
from harness.model.cache.layers import FullLayer
from harness.model.cache.packed import Packed


@dataclass(frozen=True)
class Rounding:
    """How a cache is rounded.

    Attributes:
        bits: of a number: 2, 4 or 8.
        group: tokens of a channel of the keys, and channels of a token of the values, that share a scale; tokens are
            rounded by as many at once.
        residual: the last tokens of each row that are never rounded.
    """

    bits: int
    group: int
    residual: int


class RoundedLayer(FullLayer):
    """A layer of full attention. ``keys`` and ``values`` are those that are not rounded yet.

    Groups are counted from each row's first token, padding left out, so that a row is rounded in any batch as it is
    alone. Where rows are of unequal length, shorter ones have unused groups and unused columns, which are masked.

    Attributes:
        packed: keys and values that are rounded, the groups of each row from its first on; None before there are any.
        rounded: tokens of each row that are, [rows]; None likewise.
    """

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding
        self.packed: tuple[Packed, Packed] | None = None
        self.rounded: torch.Tensor | None = None

    def stored(self) -> torch.Tensor:
        """The column of each entry, rounded or not, [rows, kv heads, entries]."""
        if self.positions is not None or self.packed is None:
            return super().stored()
        columns = torch.arange(self.seen, dtype=torch.int32, device=self.keys.device)
        return columns.expand(*self.keys.shape[:2], -1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [rows, kv heads, tokens, head width]; all that attention is to read."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.packed is None:
            return keys, values
        old = [packed.numbers() for packed in self.packed]
        return torch.cat([old[0], keys], 2), torch.cat([old[1], values], 2)

    def round(self, present: torch.Tensor | None) -> None:
        """Round the groups that have left the window of the last tokens.

        Args:
            present: which tokens seen are none of padding, which is on the left, bool [rows, tokens seen]; None: all.
        """
        rows, group = len(self.keys), self._rounding.group
        total = torch.full((rows,), self.seen) if present is None else present.sum(-1).cpu()
        before = torch.zeros_like(total) if self.rounded is None else self.rounded
        groups = ((total - before - self._rounding.residual) // group).clamp(min=0)  # to round now, [rows]
        if not groups.any():
            return
        self.rounded = before + groups * group
        if present is None and self.positions is None:
            count = int(groups[0]) * group
            more = self._packed(self.keys[:, :, :count], self.values[:, :, :count])
            self.packed = (
                more if self.packed is None else (self.packed[0].followed(more[0]), self.packed[1].followed(more[1]))
            )
        else:
            self._append((before // group).tolist(), groups.tolist(), (total - before).tolist())
        left = int((total - self.rounded).max())
        self.keys, self.values = (tensor[:, :, tensor.shape[2] - left :].clone() for tensor in (self.keys, self.values))
        if present is not None or self.positions is not None:
            self.positions = self._places(total, left)

    def _append(self, before: list[int], groups: list[int], pending: list[int]) -> None:
        """Round as many groups of each row as it has, which follow those that it has had."""
        group = self._rounding.group
        for row, count in enumerate(groups):
            start = self.keys.shape[2] - pending[row]  # what is pending stands on the right
            span = slice(start, start + count * group)
            new = self._packed(self.keys[row : row + 1, :, span], self.values[row : row + 1, :, span])
            self._grow(before[row] + count, new)
            assert self.packed is not None
            for packed, more in zip(self.packed, new, strict=True):
                packed.put(row, before[row], more)

    def _grow(self, groups: int, like: tuple[Packed, Packed]) -> None:
        """Have room for so many groups of each row."""
        room = 0 if self.packed is None else self.packed[0].groups
        if groups <= room:
            return
        rows = len(self.keys)
        empty = [
            each.changed(lambda tensor: tensor.new_zeros(rows, tensor.shape[1], groups - room, *tensor.shape[3:]))
            for each in like
        ]
        parts = (
            empty if self.packed is None else [old.followed(new) for old, new in zip(self.packed, empty, strict=True)]
        )
        self.packed = parts[0], parts[1]

    def _packed(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[Packed, Packed]:
        """Keys by channel over tokens, values by token over channels, of whole groups of tokens."""
        bits, group = self._rounding.bits, self._rounding.group
        return Packed.of(keys, bits, group), Packed.of(values, bits, group, gcd(group, values.shape[-1]))

    def _places(self, total: torch.Tensor, left: int) -> torch.Tensor:
        """The column of each entry where rows are of unequal length, int32 [rows, kv heads, entries]."""
        assert self.packed is not None
        assert self.rounded is not None
        room = self.packed[0].groups * self._rounding.group
        place = torch.arange(room).expand(len(total), -1)
        first = (self.seen - total)[:, None]  # of the row's first token
        older = torch.where(place < self.rounded[:, None], place + first, -1)
        column = torch.arange(self.seen - left, self.seen).expand(len(total), -1)
        newer = torch.where(column >= first + self.rounded[:, None], column, -1)
        places = torch.cat([older, newer], 1).to(self.keys.device, torch.int32)
        self.fillers = bool((places < 0).any())
        return places[:, None].expand(-1, self.keys.shape[1], -1)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.packed = self.rounded = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, whose number is given as a negative one.

        Raises:
            MethodError: some are rounded, and what they were rounded with would not be what it is without them.
        """
        if self.packed is not None and tokens_to_remove:
            raise MethodError("the last tokens cannot be taken back from a cache that is rounded")
        super().crop(tokens_to_remove)

    def _follow_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.packed is not None and self.rounded is not None:
            keys, values = self.packed
            self.packed = keys.changed(change), values.changed(change)
            self.rounded = change(self.rounded)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Put the rows into another order."""
        super().reorder_cache(beam_idx)
        self._follow_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._follow_rows(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Hold these rows alone."""
        super().batch_select_indices(indices)
        self._follow_rows(lambda tensor: tensor[indices.to(tensor.device)])
