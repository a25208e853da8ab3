"""The engine of presses: which keys and values stay, after the prompt was read or after every step.

What goes is gone: the tensors get shorter, and attention reads what is left. Entries keep their positions and new
tokens continue where the text is. The press sees the tokens of each row and never its padding, so that a row keeps in
any batch what it keeps alone. A text that is scored in one forward without a cache meets no press.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from harness.contract.decoder import Decoder, only
from harness.model.attention import watching
from harness.model.cache.engine import CacheEngine, Call, Running, require_pressable
from harness.model.cache.press import Entries, Press, checked
from harness.model.cache.pressed_cache import PressedCache
from harness.model.cache.product import Product

if TYPE_CHECKING:
    from harness.model.cache.layers import FullLayer, SlidingLayer

When = Literal["prefill", "decode"]

PREFILL: Final = frozenset[When]({"prefill"})


@contextmanager
def pressed(
    model: Decoder,
    press: Press,
    when: Collection[When] = PREFILL,
    *,
    name: str,
    reads_queries: bool = False,
    remembers: bool = False,
) -> Iterator[None]:
    """Let the press choose what the cache holds, for all that runs inside the ``with`` block.

    Args:
        when: "prefill" is once, when the prompt has been read, in one forward or in parts; "decode" is after every
            forward after that.
        name: the method's, for messages.
        reads_queries: give the press the queries of the forward too (``Entries.queries``, ``Entries.product``).
        remembers: keep a number for each entry that the press writes and finds again (``Entries.memory``).

    Raises:
        UnsupportedModelError: see ``require_pressable``; or queries are to be read that cannot be (``observing``).
        MethodError: another method directs the layers or holds the cache.
    """
    require_pressable(model)
    engine = _Pressing(model, press, frozenset(when), name, remembers)
    with ExitStack() as undo:
        undo.enter_context(engine.attached())
        if reads_queries:
            undo.enter_context(watching(model, engine.watch))
        yield


class _Pressing(CacheEngine):
    def __init__(self, model: Decoder, press: Press, when: frozenset[str], name: str, remembers: bool) -> None:
        super().__init__(model, partial(PressedCache, model.config, remembers=remembers), when, name)
        self._press = press
        self._read: dict[int, tuple[torch.Tensor, Mapping[str, Any]]] = {}

    def watch(self, layer: int, queries: torch.Tensor, keys: torch.Tensor, options: Mapping[str, Any]) -> None:
        """Queries of a layer's attention, [rows, heads, tokens, head width], while it runs."""
        if self.running is not None and self.running.changes:
            self._read[layer] = queries, options

    def change(self, running: Running, call: Call) -> None:
        """Ask the press about the rows that hold equally much, in turn, and hold what it keeps."""
        layer, index = call.layer, call.block.index
        columns = layer.stored().long()  # [rows, kv heads, entries]
        there, new = columns >= 0, running.present
        if new is not None:
            there &= new.gather(1, columns.clamp(min=0).flatten(1)).view_as(there)
            new = new[:, -running.tokens :]  # [rows, tokens]
        counts = there[:, 0].sum(-1).tolist()
        read = self._queries(call)
        kept: list[tuple[list[int], torch.Tensor]] = []
        for group in _alike(counts, None if new is None else new.sum(-1).tolist()):
            stored = there[group].nonzero()[:, 2].view(len(group), there.shape[1], -1)  # [rows, kv heads, entries]
            entries = self._entries(running, call, read, group, stored)
            chosen = checked(self._press(entries), entries, self.name)
            with only(self.model, tuple(group)):
                # its time counts by the call; products with queries are counted with attention's
                self.model.charge("press", layer=index, macs=0, tokens=entries.states.shape[:2].numel())
            if layer.memory is not None and entries.memory is not None:
                layer.memory[group] = layer.memory[group].scatter(-1, stored, entries.memory)
            kept.append((group, stored.gather(-1, chosen)))
        if all(indices.shape[-1] == counts[group[0]] for group, indices in kept):
            return  # nothing goes; padding is hidden by the mask, as in dense
        width = max(indices.shape[-1] for _, indices in kept)
        held = columns.new_full((*columns.shape[:2], width), -1)
        for group, indices in kept:
            held[group, :, width - indices.shape[-1] :] = indices
        layer.keep(held)

    def _queries(self, call: Call) -> tuple[torch.Tensor, Product] | None:
        """Queries of the attention that ran last, where they are read, and how they are multiplied."""
        if call.block.index not in self._read:
            return None
        queries, options = self._read.pop(call.block.index)
        rotary = call.arguments.get("position_embeddings")
        return queries, Product.of(call.attention, queries.shape[-1], options, rotary)

    def _entries(
        self,
        running: Running,
        call: Call,
        read: tuple[torch.Tensor, Product] | None,
        rows: list[int],
        stored: torch.Tensor,
    ) -> Entries:
        """What the press is told of some rows: ``stored`` are their entries, [rows, kv heads, entries]."""
        layer: FullLayer | SlidingLayer = call.layer
        keys, values = layer.keys, layer.values
        if stored.shape != keys.shape[:3]:
            keys, values = (
                tensor[rows].gather(2, stored[..., None].expand(-1, -1, -1, tensor.shape[-1]))
                for tensor in (keys, values)
            )
        positions = layer.stored()[rows].long().gather(-1, stored)
        memory = None if layer.memory is None else layer.memory[rows].gather(-1, stored)
        queries, product = (None, None) if read is None else read
        states, queries = call.states[rows], None if queries is None else queries[rows]
        new: torch.Tensor | None = None
        if running.present is not None:
            present = running.present[rows]
            tokens = present.cumsum(-1) - 1  # [rows, tokens seen]
            positions = tokens.gather(1, positions.flatten(1)).view_as(positions)
            new = present[:, -running.tokens :]
            row, token = new.nonzero().view(len(rows), -1, 2).unbind(-1)  # [rows, tokens]
            states = states[row, token]
            queries = None if queries is None else queries.transpose(1, 2)[row, token].transpose(1, 2)
        product = None if product is None else product.rows(rows, new)
        return Entries(
            layer=call.block.index,
            layers=len(self.model.anatomy.blocks),
            rows=tuple(rows),
            keys=keys,
            values=values,
            positions=positions,
            states=states,
            queries=queries,
            product=product,
            memory=memory,
            decoding=running.decoding,
        )


def _alike(counts: list[int], tokens: list[int] | None) -> list[list[int]]:
    """Rows that hold equally many entries, and of equally many new tokens."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, count in enumerate(counts):
        groups.setdefault((count, tokens[row] if tokens else 0), []).append(row)
    return list(groups.values())
