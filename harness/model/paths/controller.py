"""What chooses the layer paths: a fixed table, a router at each layer, or a predictor before the first layer.

All three answer one question. When the prompt has reached a layer, ``decide`` returns for each row how often it runs
that layer, and may include any number of the layers after it: a router answers for one layer, a predictor and a table
for the whole model.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from harness.contract.decoder import ForwardContext
from harness.core.errors import MethodError
from harness.model.paths.routed_cache import LayerPath


@dataclass(frozen=True)
class Prompts:
    """The tokens that a decision may look at.

    Attributes:
        ids: the input, [rows, tokens].
        spans: for each row, where its prompt begins and ends in the input.
    """

    ids: torch.Tensor
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor | None, context: ForwardContext | None) -> "Prompts":
        """The prompts of a batch's first forward.

        They end where the context says; without a context every token that the attention mask keeps is prompt.

        Args:
            ids: the input, [rows, tokens].
            mask: the attention mask, [rows, tokens], 0 at padding.
        """
        rows, width = ids.shape
        if context is not None and context.padding == "left":
            return cls(ids, tuple((width - row.length, width) for row in context.rows))
        if context is not None:
            return cls(ids, tuple((0, row.prompt_length) for row in context.rows))
        if mask is None or mask.ndim != 2:
            return cls(ids, ((0, width),) * rows)
        kept = [[place for place, flag in enumerate(row) if flag] for row in mask.tolist()]  # one transfer for all rows
        return cls(ids, tuple((row[0], row[-1] + 1) if row else (0, 0) for row in kept))

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """A digest of each row's prompt tokens; equal for equal prompts, whatever the padding."""
        rows = (row[begin:end] for row, (begin, end) in zip(self.ids.tolist(), self.spans, strict=True))
        return tuple(hashlib.blake2b(repr(row).encode(), digest_size=16).digest() for row in rows)

    def states(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The prompt's part of hidden states [rows, tokens, width]: for each row [prompt, width].

        Raises:
            MethodError: a row has no prompt, such as a text that is scored whole.
        """
        if any(begin == end for begin, end in self.spans):
            raise MethodError("a path that is chosen from the prompt needs one, and this text has none")
        return [row[begin:end] for row, (begin, end) in zip(hidden, self.spans, strict=True)]


class Controller(ABC):
    """Chooses paths.

    Attributes:
        passes: the most times that any layer may run.
    """

    passes: ClassVar[int] = 2

    @property
    def by_prompt(self) -> bool:
        """Whether a path depends on the prompt, so that equal prompts must be told: their tokens come to the host."""
        return True

    @abstractmethod
    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[LayerPath]:
        """For each row, how often it runs this layer, and as many of the following as are already decided.

        Args:
            layer: index of the layer in the dense model.
            hidden: its input, [rows, tokens, width], computed along the paths decided so far.
            prompts: the tokens that may be looked at.
        """


@dataclass(frozen=True)
class FixedPaths(Controller):
    """Paths that are known in advance: one for every row, or one for each."""

    paths: tuple[LayerPath, ...]

    @property
    def by_prompt(self) -> bool:
        """No, where all rows take one path; what extends this class may decide by prompt."""
        return type(self) is not FixedPaths or len(self.paths) > 1

    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[LayerPath]:
        """The rest of each row's path."""
        rows = self.paths * len(prompts.spans) if len(self.paths) == 1 else self.paths
        return [path[layer:] for path in rows]


class SkipPaths(Controller):
    """Paths that skip layers or run them once, as a function of each prompt's digest."""

    passes = 1

    def __init__(self, path: Callable[[bytes], LayerPath]) -> None:
        self._path = path

    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[LayerPath]:
        """The rest of each row's path."""
        return [self._path(digest)[layer:] for digest in prompts.digests]
