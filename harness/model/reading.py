"""Texts scored context first: contexts are read into a cache, then what continues them against what the cache holds.

Between the two a method acts as it does when text is written: what it takes out of the cache, or reads in another way,
shows in the scores. A context is read once for all of its continuations. Rows that are read together have as many
tokens each, so that nothing is padded and no position is in doubt.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, Self

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMode

from harness.contract.decoder import Decoder, Row
from harness.core.errors import UnsupportedModelError

MOST: Final = 32
"""Continuations that are read in one forward."""


@dataclass(frozen=True)
class Continuation:
    """What is read after a context.

    Attributes:
        row: as ``Row``, of the context's tokens and these.
        tokens: may be empty, where one token is predicted by the context's last.
        predicted: how many of the last predictions are asked for; one more than there are tokens where the context's
            last token gives the first.
    """

    row: Row
    tokens: tuple[int, ...]
    predicted: int


@dataclass(frozen=True)
class Context:
    """What is read first, perhaps nothing, and its continuations.

    Attributes:
        row: as ``Row``, of these tokens alone.
    """

    row: Row
    tokens: tuple[int, ...]
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True)
class Part:
    """Rows that one batch of forwards served.

    Attributes:
        members: for each row, its context's index and its continuation's, None where the context itself was read.
        logits: what was asked for, [predicted, vocabulary], by the indices of context and continuation.
    """

    members: list[tuple[int, int | None]]
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)


class Cached:
    """Rows as far as they have been read, and the cache that they left.

    Attributes:
        together: whether several rows can be read at once: not with methods that want them alone, nor where a cache,
            such as one of a method's own, may keep more of a row than is taken out with it.

    Raises:
        UnsupportedModelError: the model keeps no cache of keys and values.
    """

    def __init__(self, model: Decoder, rows: int, positions: int) -> None:
        self._model, self._accepted = model, inspect.signature(model.module.forward).parameters
        self._seen, self._cache = 0, new_cache(model, rows, positions)
        self.together = not model.manner.alone and _selects(self._cache)

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """Read more tokens of every row, as many of each; the logits of the last ones, [rows, keep, vocabulary]."""
        ids = torch.tensor(texts, device=self._model.device)  # [rows, tokens]
        seen, self._seen = self._seen, self._seen + ids.shape[1]
        # as ``generate`` gives them, whatever the cache holds
        given = {
            "attention_mask": ids.new_ones(len(ids), self._seen),
            "position_ids": torch.arange(seen, self._seen, device=ids.device).expand(len(ids), -1),
            "logits_to_keep": keep,
        }
        arguments = {name: value for name, value in given.items() if name in self._accepted}
        output = self._model.module(input_ids=ids, past_key_values=self._cache, use_cache=True, **arguments)
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits

    def continued(self, texts: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """Read what continues every row, in the manner of the methods that are attached; see ``read``."""
        if not self._model.manner.stepwise:
            return self.read(texts, keep)
        steps = [self.read([[text[step]] for text in texts], 1) for step in range(len(texts[0]))]
        return torch.cat(steps[-keep:], 1)

    def selected(self, rows: Sequence[int]) -> Self:
        """These rows, some perhaps several times, in a cache of their own."""
        forked = copy.copy(self)
        if not self.together:
            assert set(rows) == {0}, "contexts that cannot be read together are read one by one"
            forked._cache = copy.deepcopy(self._cache)
            return forked
        forked._cache = copy.copy(self._cache)
        forked._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        forked._cache.batch_select_indices(torch.tensor(rows, device=self._model.device))
        return forked


def reads_together(model: Decoder) -> bool:
    """Whether several contexts can be read at once (see ``Cached``)."""
    return Cached(model, 1, 1).together


def read(model: Decoder, contexts: Sequence[Context]) -> Iterator[Part]:
    """Read a batch of contexts, then their continuations, in the manner of the methods that are attached.

    Args:
        contexts: of as many tokens each; a single one where they cannot be read together.

    Yields:
        Each part when it is finished, so that what ran for its rows can be collected.
    """
    read_first = len(contexts[0].tokens)
    longest = max(len(each.tokens) for context in contexts for each in context.continuations)
    cached = Cached(model, len(contexts), read_first + longest)
    last: torch.Tensor | None = None  # [contexts, 1, vocabulary]
    if read_first:
        with model.serving([context.row for context in contexts], "score", read=read_first):
            last = cached.read([context.tokens for context in contexts], 1)
        answered = {
            (number, index): last[number]
            for number, context in enumerate(contexts)
            for index, each in enumerate(context.continuations)
            if not each.tokens
        }
        yield Part([(number, None) for number in range(len(contexts))], answered)
    batches = list(_batches(contexts, MOST if cached.together else 1))
    for count, members in enumerate(batches, start=1):
        rows = [number for number, _ in members]
        is_last = count == len(batches) and rows == list(range(len(contexts)))
        forked = cached if is_last else cached.selected(rows)
        continuations = [contexts[number].continuations[index] for number, index in members]
        keep = max(min(each.predicted, len(each.tokens)) for each in continuations)
        with model.serving([each.row for each in continuations], "score", processed=read_first, read=read_first):
            logits = forked.continued([each.tokens for each in continuations], keep)  # [rows, keep, vocabulary]
        asked = {}
        for (number, index), each, own in zip(members, continuations, logits, strict=True):
            first = last[number] if last is not None and each.predicted > len(each.tokens) else own[:0]
            asked[number, index] = torch.cat((first, own[-min(each.predicted, len(each.tokens)) :]))
        yield Part(list(members), asked)


def _batches(contexts: Sequence[Context], most: int) -> Iterator[list[tuple[int, int]]]:
    """Which continuations are read together, as indices of context and continuation."""
    lengths = {
        (number, index): len(each.tokens)
        for number, context in enumerate(contexts)
        for index, each in enumerate(context.continuations)
        if each.tokens
    }
    for _, alike in groupby(sorted(lengths, key=lengths.__getitem__), key=lengths.__getitem__):
        members = list(alike)
        yield from (members[start : start + most] for start in range(0, len(members), most))


def _selects(cache: Any) -> bool:
    """Whether rows can be taken out of an empty cache, and repeated, with all that its class keeps of them."""
    plain = {DynamicCache, DynamicLayer, DynamicSlidingWindowLayer}
    kinds = {type(cache), *map(type, getattr(cache, "layers", ()))}
    if not all(kind in plain or _selects_of_its_own(kind) for kind in kinds):
        return False
    try:
        cache.batch_select_indices(torch.tensor([0]))
    except Exception:  # a method's cache may refuse in any way
        return False
    return True


def _selects_of_its_own(kind: type) -> bool:
    owner = next((base for base in kind.__mro__ if "batch_select_indices" in vars(base)), object)
    return owner is not object and not owner.__module__.startswith("transformers.")


def new_cache(model: Decoder, rows: int, positions: int) -> Any:
    """An empty cache as ``generate`` makes it, or as a method makes it for ``generate``."""
    module: Any = model.module
    config, _ = module._prepare_generation_config(None, use_cache=True, num_beams=1, num_return_sequences=1)
    made: dict[str, Any] = {}
    module._prepare_cache_for_generation(config, made, GenerationMode.GREEDY_SEARCH, rows, positions)
    if made.get("past_key_values") is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} keeps no cache of keys and values that texts could be scored against: "
            "give --score_mode lm-eval"
        )
    return made["past_key_values"]
