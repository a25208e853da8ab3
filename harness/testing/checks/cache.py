"""What a cache that holds less must still be: read as if the rest were masked, no padding in it, and really smaller."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.contract.facts import Phase, Savings
from harness.contract.families import Family
from harness.core.errors import UnsupportedModelError
from harness.measure.cache import bytes_of
from harness.model.attention import observing, require_observable
from harness.testing.outcome import Failed, Skipped
from harness.testing.serve import TEXTS, TOLERANCE, Text, difference, generate, require_same_text, score
from harness.testing.subject import Subject, on

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

STEPS = 6
SMALLER = 0.98
"""Bytes of the cache, in parts of dense's, that count as fewer."""


def decodes_as_if_masked(subject: Subject) -> None:
    """Decode steps that read fewer keys give what a forward without a cache gives where the others are masked."""
    _require_decode_alone(subject)
    gone = False
    for family, decoder in subject.each():
        try:
            require_observable(decoder)
        except UnsupportedModelError as refusal:
            raise Skipped(f"what is read cannot be seen: {refusal}") from None
        with on(family):
            for text in TEXTS[:2]:
                reads = _Reads()
                with subject.attached(decoder), observing(decoder, reads.observe):
                    written = generate(decoder, [text], steps=STEPS)
                if written.logits is None or not reads.fewer:
                    continue
                gone = True
                with subject.attached(decoder), _masked(decoder, reads.readable()):  # scoring reads no cache
                    whole = score(decoder, [Text(text.prompt, tuple(written.tokens[0][:-1]))])
                expected = whole.row(0)[len(text.prompt) - 1 :]
                for step, (logits, reference) in enumerate(zip(written.row(0), expected, strict=True)):
                    worst = difference(logits, reference)
                    if not worst <= TOLERANCE:
                        raise Failed(
                            f"generated token {step} has logits that differ by {worst:.0%} of the largest from those "
                            "of a forward in which what it did not read is masked; entries keep their positions, and "
                            "new tokens continue those of the text"
                        )
    if not gone:
        raise Skipped("its decode steps read all keys")


def padding_is_never_kept(subject: Subject) -> None:
    """Rows of unequal length write in one batch what each of them writes alone."""
    _require_decode_alone(subject)
    if not subject.stack.batchable:
        raise Skipped("it declares batchable = False, so it is run one row at a time")
    what = "a row writes other text beside longer ones; padding is chosen from, or rows do not keep their own number"
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            together = generate(decoder, TEXTS)
            for row, text in enumerate(TEXTS):
                require_same_text(together, generate(decoder, [text]), row, 0, what)


def holds_less(subject: Subject) -> None:
    """Where a method of the cache saves, all that the cache reaches is fewer bytes than dense's."""
    if Family.CACHE not in {part.family for part in subject.parts}:
        raise Skipped("it is no method of the cache")
    if subject.savings is not Savings.REAL:
        raise Skipped(f"its savings are {subject.savings}")
    for family, decoder in subject.each():
        dense = _held(decoder)
        with subject.attached(decoder):
            share = _held(decoder) / dense
        if share > SMALLER:
            raise Failed(f"{family}: it declares real savings, but its cache holds {share:.1%} of dense's bytes")


def _require_decode_alone(subject: Subject) -> None:
    if all(Phase.PREFILL in part.phases for part in subject.parts):
        raise Skipped("it acts in the prefill too; see cached-decoding")


def _held(decoder: "Decoder") -> int:
    """Bytes that the cache of a written text holds."""
    caches: list[Any] = []
    watching = decoder.module.register_forward_hook(lambda module, args, output: caches.append(output.past_key_values))
    try:
        generate(decoder, TEXTS[1:2], steps=STEPS)
    finally:
        watching.remove()
    return bytes_of(caches[-1])


@dataclass
class _Reads:
    """Which keys each query read, in one row, told by the keys themselves: an entry is where its key was first given.

    Attributes:
        given: keys by layer in the order in which they came, [kv heads, tokens, head width].
        entries: by layer, for each forward, how many queries it had and what was read, [kv heads, keys].
    """

    given: dict[int, torch.Tensor] = field(default_factory=dict)
    entries: dict[int, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def observe(self, layer: int, queries: torch.Tensor, keys: torch.Tensor) -> None:
        """See ``harness.model.attention.observing``."""
        tokens, read = queries.shape[2], keys[0]  # [kv heads, keys, head width]
        before = self.given.get(layer, read[:, :0])
        self.given[layer] = every = torch.cat([before, read[:, -tokens:]], 1)
        same = (read[:, :, None] == every[:, None]).all(-1)  # [kv heads, keys, tokens]
        if not same.any(-1).all():
            raise Skipped("its cache holds other keys than it was given, which cannot be told apart")
        self.entries.setdefault(layer, []).append((tokens, same.int().argmax(-1)))

    @property
    def fewer(self) -> bool:
        """Whether some query read fewer keys than there were."""
        return any(read[-1][1].shape[1] < self.given[layer].shape[1] for layer, read in self.entries.items())

    def readable(self) -> dict[int, torch.Tensor]:
        """What each query read, by layer: bool [kv heads, tokens, tokens]."""
        masks = {}
        for layer, forwards in self.entries.items():
            heads, tokens, _ = self.given[layer].shape
            masks[layer] = mask = torch.zeros(heads, tokens, tokens, dtype=torch.bool, device=self.given[layer].device)
            start = 0
            for queries, read in forwards:
                mask[:, start : start + queries].scatter_(2, read[:, None].expand(-1, queries, -1), value=True)
                start += queries
        return masks


@contextmanager
def _masked(decoder: "Decoder", readable: dict[int, torch.Tensor]) -> Iterator[None]:
    """Let each query of the one row read these keys alone, as far as they are not after it."""
    handles = []
    for block in decoder.anatomy.blocks:

        def mask(module: Any, args: Any, kwargs: dict[str, Any], layer: int = block.index) -> Any:
            own, groups = kwargs["attention_mask"], getattr(module, "num_key_value_groups", 1)
            allowed = readable[layer].tril().repeat_interleave(groups, 0)[None]  # [1, heads, tokens, tokens]
            if own is not None:
                allowed = allowed & (own if own.dtype == torch.bool else own == 0)
            if decoder.config._attn_implementation == "eager":
                allowed = torch.where(allowed, 0.0, torch.finfo(decoder.module.dtype).min)
            return args, {**kwargs, "attention_mask": allowed}

        handles.append(block.attention.modules[0].register_forward_pre_hook(mask, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
