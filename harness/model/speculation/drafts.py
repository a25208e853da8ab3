"""What guesses tokens: a function of the text, something that remembers the text, or a part of the model itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from harness.contract.decoder import Decoder
from harness.model.speculation.text import Text

Draft = Callable[[list[int], int], "Sequence[int] | torch.Tensor"]
"""Proposes what follows a text: takes its token ids without padding, and how many tokens at most; gives that many or
fewer, as whole numbers or a tensor of them, [tokens]."""


class StatefulDraft(ABC):
    """A draft that remembers something of the text that is being written."""

    @abstractmethod
    def begin(self) -> None:
        """Another text begins: forget the last one."""

    @abstractmethod
    def __call__(self, context: list[int], count: int) -> Sequence[int]:
        """See ``Draft``."""


class SharedDraft(StatefulDraft):
    """A draft by the model on the cache in which the text is; it takes out what it put there before it returns.

    Attributes:
        text: the text that is being written.
    """

    text: Text

    def begin(self) -> None:
        """Nothing is remembered but the text, which is set next."""

    def verifying(self) -> AbstractContextManager[None]:
        """Around the forward that verifies what was guessed last."""
        return nullcontext()


class CachedDraft(StatefulDraft):
    """Drafts token after token by forwards of a model, with a cache of its own."""

    def __init__(self, config: Any, device: torch.device) -> None:
        self._config, self._device = config, device
        self.begin()

    def begin(self) -> None:
        """Start with an empty cache."""
        self._cache: Any = None
        self._cached: list[int] = []  # the tokens whose keys and values it has

    @abstractmethod
    def read(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """One forward over unread tokens, [1, tokens]; the logits of the last one, [vocabulary]."""

    def __call__(self, context: list[int], count: int) -> list[int]:
        """The greedy continuation."""
        self._take_back(context)
        unread, drafts = context[len(self._cached) :], list[int]()
        for _ in range(count):
            logits = self.read(torch.tensor([unread], device=self._device), self._cache)
            drafts.append(int(logits.argmax()))
            self._cached += unread
            unread = drafts[-1:]
        return drafts

    def _take_back(self, context: list[int]) -> None:
        """Leave in the cache what the text and it have in common, but for the text's last token, which is read."""
        if self._cache is None:
            self._cache = DynamicCache(config=self._config)
            self._cache.activate_past_recording()
        pairs = zip(self._cached, context[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self._cached:
            self._cache.crop(common - len(self._cached))
            del self._cached[common:]


class SelfDraft(CachedDraft):
    """Drafts by a part of the model itself, token after token, with a cache of its own.

    Args:
        part: makes the model that part, such as ``partial(without_blocks, model, layers)``.
    """

    def __init__(self, model: Decoder, part: Callable[[], AbstractContextManager[Any]]) -> None:
        self._model, self._part = model, part
        super().__init__(model.config, model.device)

    def __call__(self, context: list[int], count: int) -> list[int]:
        """The part's own greedy continuation."""
        with self._model.drafting(), self._part():
            return super().__call__(context, count)

    def read(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """The part's logits after the last of these tokens, [vocabulary]."""
        module: Any = self._model.module
        last = {"logits_to_keep": 1} if module._supports_logits_to_keep() else {}
        logits = module(input_ids=ids, past_key_values=cache, use_cache=True, **last).logits  # [1, any, vocabulary]
        last_logits: torch.Tensor = logits[0, -1]
        return last_logits
