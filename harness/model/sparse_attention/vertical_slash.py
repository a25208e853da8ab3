"""Columns and diagonals of the attention of a prompt, chosen by its last queries.

The probabilities of the last queries are added up by key, which says which columns all queries read, and by distance,
which says which diagonals they do. Each head chooses for itself, each row from its own prompt. What follows the prompt
in a text that is scored reads all keys, as the tokens do that are written after it.

Source: MInference's vertical-slash pattern (arXiv:2407.02490), as "The Sparse Frontier" (arXiv:2504.17768) has it.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import torch

from harness.contract.decoder import Decoder, only
from harness.model.attention import attending
from harness.model.sparse_attention.masked import masked
from harness.model.sparse_attention.places import grouped, is_decoding, readable_by, starts

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Which columns or diagonals are read, bool, of their scores; both [heads, places]."""


def by_last_queries(
    model: Decoder,
    layers: Collection[int],
    columns: Choose,
    diagonals: Choose,
    *,
    sinks: int,
    window: int,
    queries: int,
    least: int,
    name: str,
) -> AbstractContextManager[None]:
    """Read prompts by the columns and diagonals that these functions choose, in some layers.

    Args:
        sinks: columns that are always read: those of a prompt's first tokens.
        window: diagonals that are always read: those of a query's own key and of the ones before it.
        queries: the last queries of a prompt, whose attention is computed in full to choose by it.
        least: prompts that are no longer are as dense.
    """

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        rows, heads, count, width = q.shape
        keys = k.shape[2]
        spans = [*zip(starts(mask, rows, q.device).tolist(), _ends(model, rows, keys), strict=True)]
        if is_decoding(model, count, keys) or all(end - first <= least for first, end in spans):
            return None
        readable, outputs, pairs = readable_by(mask, q, k), [], 0
        for row, (first, end) in enumerate(spans):
            own = slice(row, row + 1)
            allowed = readable[own]
            if end - first > least:
                prompt = slice(first, end)
                asked = q[own, :, max(max(first, end - queries) - keys + count, 0) : end - keys + count]
                scores = column_and_diagonal_scores(asked, k[own, :, prompt], scale)
                with only(model, (row,)):
                    macs = heads * asked.shape[2] * (end - first) * width
                    model.charge("selection", layer=layer, macs=macs, tokens=asked.shape[2])
                chosen = columns(scores[0]), diagonals(scores[1])
                chosen[0][:, :sinks] = chosen[1][:, :window] = True
                read = _Read(*chosen, first, end, keys - count).of(allowed)
            else:
                read = _all(allowed)
            output, multiplied = masked(q[own], k[own], v[own], read, scale)
            outputs.append(output)
            pairs += multiplied
        return torch.cat(outputs), pairs

    return attending(model, attend, layers, name=name)


def column_and_diagonal_scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean probabilities of a prompt's keys, and of its distances between a query and a key, both [heads, tokens].

    Args:
        q: its last queries, [1, heads, queries, width].
        k: its keys, [1, kv heads, tokens, width].
    """
    heads, queries, tokens = q.shape[1], q.shape[2], k.shape[2]
    place = torch.arange(tokens, device=k.device)
    distance = place[tokens - queries :, None] - place  # [queries, tokens]
    logits = (grouped(q, k.shape[1]) @ k.mT * scale).view(heads, queries, tokens)
    p = logits.float().masked_fill(distance < 0, -torch.inf).softmax(-1)
    seen = distance >= 0
    diagonal = p.new_zeros(heads, tokens).index_add(1, distance.clamp(min=0).flatten(), (p * seen).flatten(1))
    counts = torch.bincount(distance[seen], minlength=tokens).clamp(min=1)
    return p.mean(1), diagonal / counts


def _all(allowed: torch.Tensor) -> Callable[[slice], torch.Tensor]:
    """All that may be read, by block of queries."""
    return lambda block: allowed[:, :, block]


class _Read:
    """What a prompt's queries read, of a row of keys.

    Args:
        columns, diagonals: those chosen, bool [heads, tokens].
        first, end: the columns of the prompt's first token, and after its last.
        before: columns before the first query's own.
    """

    def __init__(self, columns: torch.Tensor, diagonals: torch.Tensor, first: int, end: int, before: int) -> None:
        self._columns, self._diagonals = columns, diagonals
        self._first, self._end, self._before = first, end, before

    def of(self, allowed: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """By block of queries, what is read of what may be: bool [1, heads, queries, keys] of [1, 1, queries, keys]."""

        def readable(block: slice) -> torch.Tensor:
            own = torch.arange(block.start, block.stop, device=allowed.device) + self._before - self._first
            place = torch.arange(allowed.shape[-1], device=allowed.device) - self._first  # of each key in its row
            most = self._columns.shape[-1] - 1
            distance = (own[:, None] - place).clamp(0, most)  # [queries, keys]
            read = self._columns[:, None, place.clamp(0, most)] | self._diagonals[:, distance]
            read = read | (own + self._first >= self._end)[:, None]  # what follows the prompt
            return allowed[:, :, block] & read

        return readable


def _ends(model: Decoder, rows: int, keys: int) -> list[int]:
    """The column after each row's prompt: what follows it in a text that is scored in one forward decides nothing."""
    context = model.context
    if context is None or context.kind == "generate" or context.read is not None:
        return [keys] * rows
    members = range(rows) if context.active is None else context.active
    return [min(context.rows[member].prompt_length, keys) for member in members]
