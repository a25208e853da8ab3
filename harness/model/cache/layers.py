"""Cache layers that hold fewer entries than tokens seen: what was seen is counted apart from what is stored.

transformers reads positions and the size of masks off the length of a layer, which is wrong as soon as entries are
gone. Here a counter of the layer's own states how many tokens it has seen, so that positions of new tokens continue,
and each entry keeps its position, so that a mask over all tokens seen gives the mask over what is stored. As long as
nothing is gone, a layer is transformers' own to the last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.core.errors import MethodError


class _Thinned:
    """What both kinds of layer add to transformers': entries may go.

    Attributes:
        keys, values: what is stored, [rows, kv heads, entries, head width]; None before the first update.
        positions: the column of each entry among all tokens seen, padding included, ascending, as int32
            [rows, kv heads, entries]; -1 in the columns by which a row has fewer entries than others. None as long as
            the layer holds what transformers' own would.
        fillers: whether some of the positions are -1.
        memory: a number for each entry, float32 [rows, kv heads, entries], 0 where nobody wrote one; it goes where the
            entry goes. None where the press remembers nothing.
        remembers: whether there is one.
        seen: tokens of each row that the layer was given, padding included.
    """

    keys: torch.Tensor
    values: torch.Tensor
    seen: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positions: torch.Tensor | None = None
        self.memory: torch.Tensor | None = None
        self.fillers = self.remembers = False

    def stored(self) -> torch.Tensor:
        """The column of each entry, whether entries are gone or not, [rows, kv heads, entries]."""
        if self.positions is not None:
            return self.positions
        rows, heads, entries, _ = self.keys.shape
        last = torch.arange(self.seen - entries, self.seen, dtype=torch.int32, device=self.keys.device)
        return last.expand(rows, heads, -1)

    def keep(self, entries: torch.Tensor) -> None:
        """Hold these entries alone.

        Args:
            entries: their indices among those stored, ascending, [rows, kv heads, kept]; -1 in front where a row keeps
                fewer than others.
        """
        index, filler = entries.clamp(min=0), entries < 0
        self.positions = self.stored().gather(-1, index).masked_fill(filler, -1)
        self.fillers = bool(filler.any())
        if self.memory is not None:
            self.memory = self.memory.gather(-1, index).masked_fill(filler, 0.0)
        self.keys, self.values = (
            tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))
            for tensor in (self.keys, self.values)
        )

    def adopt(self) -> None:
        """Hold the keys and values that something else put in place of its own, of which tokens is not known.

        Every later token may read them, so they count as the last tokens' that were seen.
        """
        entries = self.keys.shape[2]
        if entries != (self.seen if self.positions is None else self.positions.shape[-1]):
            self.positions = None
            self.positions = self.stored()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [rows, kv heads, tokens, head width]; all that attention is to read."""
        start, tokens = self.seen, key_states.shape[-2]
        if self.positions is None:
            read: tuple[torch.Tensor, torch.Tensor]
            read = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        else:
            columns = torch.arange(start, start + tokens, dtype=torch.int32, device=self.positions.device)
            self.positions = torch.cat([self.positions, columns.expand(*key_states.shape[:2], -1)], -1)
            self.keys = torch.cat([self.keys, key_states], -2)
            self.values = torch.cat([self.values, value_states], -2)
            read = self.keys, self.values
        self.seen = start + tokens
        if self.remembers:
            new = key_states.new_zeros(key_states.shape[:3], dtype=torch.float32)
            self.memory = self._last(new if self.memory is None else torch.cat([self.memory, new], -1))
        return read

    def get_seq_length(self) -> int:
        """Tokens seen, however many entries are stored."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[misc]
        self.positions, self.memory, self.fillers, self.seen = None, None, False, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, whose number is given as a negative one.

        Raises:
            MethodError: some of their entries, or of what was there before them, are gone.
        """
        seen, count = self.seen, -tokens_to_remove
        if self.positions is None:
            super().crop(tokens_to_remove)  # type: ignore[misc]
            if self.memory is not None:
                self.memory = self._last(self.memory[..., : self.memory.shape[-1] - count])
        elif count > 0:
            last = torch.arange(seen - count, seen, device=self.positions.device)
            if self.positions.shape[-1] < count or (self.positions[..., -count:] != last).any():
                raise MethodError(f"the last {count} tokens cannot be taken back: entries of the cache are gone since")
            self._cut(slice(None, -count))
        self.seen = seen - count

    def _cut(self, entries: slice) -> None:
        """Hold this part of the stored entries."""
        self._follow(lambda numbers: numbers[..., entries])
        self.keys, self.values = self.keys[..., entries, :], self.values[..., entries, :]

    def _last(self, memory: torch.Tensor) -> torch.Tensor:
        """The memory of what is stored, of one that a window has let go the first entries of."""
        return memory[..., memory.shape[-1] - self.keys.shape[-2] :]

    def _follow(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do with what is known of each entry, [rows, kv heads, entries], what is done with the entries."""
        self.positions, self.memory = (
            None if numbers is None else change(numbers) for numbers in (self.positions, self.memory)
        )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Put the rows into another order."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._follow(lambda numbers: numbers.index_select(0, beam_idx.to(numbers.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._follow(lambda numbers: numbers.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Hold these rows alone."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._follow(lambda numbers: numbers[indices, ...])

    def mask(self, mask: torch.Tensor | None, queries: int, groups: int) -> torch.Tensor | None:
        """The part of a mask that is about what this layer stores and about the new tokens.

        Args:
            mask: of all tokens seen and the new ones, [rows or 1, 1, queries, seen + queries], bool or added to scores;
                None where every query may read all that is not after it.
            queries: new tokens of each row.
            groups: query heads of a kv head.

        Returns:
            [rows, 1 or heads, queries, entries + queries], or None as above.
        """
        if (mask is None and not self.fillers) or (self.positions is None and not self.is_sliding):  # type: ignore[attr-defined]
            return mask
        kept = self.stored()  # [rows, kv heads, entries]
        every = torch.arange(self.seen + queries, device=kept.device)
        new = every[self.seen :]
        if mask is None:
            mask = (every <= new[:, None])[None, None]
        if not self.is_sliding:  # type: ignore[attr-defined]
            kept, groups = kept[:, :1], 1  # no entry of a row is hidden by its position, so heads are alike
        columns = torch.cat([kept.long(), new.expand(*kept.shape[:2], -1)], -1)[:, :, None]
        columns = columns.expand(-1, -1, queries, -1)  # [rows, 1 or kv heads, queries, entries + queries]
        picked = mask.expand(*columns.shape[:3], -1).gather(-1, columns.clamp(min=0))
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return picked.masked_fill(columns < 0, hidden).repeat_interleave(groups, 1)


class FullLayer(_Thinned, DynamicLayer):  # type: ignore[misc] # transformers has no type information here
    """A layer of full attention."""

    batch_select_indices = _Thinned.batch_select_indices

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0


class SlidingLayer(_Thinned, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A layer of sliding-window attention, which holds nothing that no later token may read."""

    batch_select_indices = _Thinned.batch_select_indices

    @property
    def seen(self) -> int:
        """Tokens of each row, padding included."""
        return int(self.cumulative_length)

    @seen.setter
    def seen(self, tokens: int) -> None:
        self.cumulative_length = tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, and let go what has left the window of every head."""
        read = super().update(key_states, value_states, *args, **kwargs)
        if self.positions is not None and not self.record_past:
            left = int((self.positions <= self.seen - self.sliding_window).sum(-1).min())
            self._cut(slice(left, None))
        return read
