"""Who chooses the layer paths: a fixed table, a router within the layers, or a predictor before them.

All three answer one question. When the prompt has reached a layer, ``decide`` says for each row how often it runs
that layer, and may go on to say so of the layers after it: a router answers for one layer, a predictor for all that
follow, a table for the whole model.
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
from harness.model.paths.routed_cache import Path


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
        """The prompts of a first forward.

        They end where the context says; without a context every token that ``mask`` [rows, tokens] does not hide
        is one of the prompt.
        """
        rows, width = ids.shape
        if context is not None and context.padding == "left":
            return cls(ids, tuple((width - row.length, width) for row in context.rows))
        if context is not None:
            return cls(ids, tuple((0, row.prompt_length) for row in context.rows))
        if mask is None or mask.ndim != 2:
            return cls(ids, ((0, width),) * rows)
        kept = [torch.nonzero(row).flatten().tolist() for row in mask]
        return cls(ids, tuple((row[0], row[-1] + 1) if row else (0, 0) for row in kept))

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """What the prompts are told apart by: a digest of each row's tokens."""
        rows = (row[begin:end] for row, (begin, end) in zip(self.ids.tolist(), self.spans, strict=True))
        return tuple(hashlib.blake2b(repr(row).encode(), digest_size=16).digest() for row in rows)

    def states(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The prompts' part of hidden states [rows, tokens, width]: [prompt, width] of each row.

        Raises:
            MethodError: a row has no prompt, as a text scored as a whole has none.
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

    @abstractmethod
    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[Path]:
        """For each row, how often it runs this layer, and as many of the following as are already decided.

        Args:
            layer: the layer's index in the dense model.
            hidden: its input, [rows, tokens, width], where the rows have taken the paths decided so far.
            prompts: which of the tokens may be looked at.
        """


@dataclass(frozen=True)
class FixedPaths(Controller):
    """Paths that are known before: one for every row, or one for each."""

    paths: tuple[Path, ...]

    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[Path]:
        """The rest of the table."""
        rows = self.paths * len(prompts.spans) if len(self.paths) == 1 else self.paths
        return [path[layer:] for path in rows]


class SkipPaths(Controller):
    """Paths that skip layers or run them once, as a function of each prompt's digest."""

    passes = 1

    def __init__(self, path: Callable[[bytes], Path]) -> None:
        self._path = path

    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence[Path]:
        """The rest of each row's path."""
        return [self._path(digest)[layer:] for digest in prompts.digests]
