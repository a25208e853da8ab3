"""A prompt and its answers as one row: the prompt once, then the prefix tree of the answers.

Each token attends to the prompt and to the tokens before it in its own answers, and has the position that it would
have in a plain text, so the logits of every answer are those of the prompt followed by that answer alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Texts:
    """The texts of one question: its prompt followed by each of its answers.

    Attributes:
        prompt: tokens of the prompt.
        answers: tokens of each answer.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def row(self) -> tuple[int, ...]:
        """The model's input: the prompt, then the answers without their last tokens, shared prefixes once."""
        return (*self.prompt, *(token for _, token in self._tree))

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each token of the row in its text."""
        depths: list[int] = []
        for parent, _ in self._tree:
            depths.append(len(self.prompt) if parent < 0 else depths[parent] + 1)
        return (*range(len(self.prompt)), *depths)

    @property
    def branching(self) -> bool:
        """Whether the row is more than one plain text."""
        return len(self.row) > max(self.positions) + 1

    def logit_indices(self, answer: tuple[int, ...]) -> list[int]:
        """Index in the row of the logits that predict each token of an answer: that of the token before it."""
        node, indices = -1, [len(self.prompt) - 1]
        for token in answer[:-1]:
            node = self._tree[node, token]
            indices.append(len(self.prompt) + node)
        return indices[: len(answer)]

    @cached_property
    def _tree(self) -> dict[tuple[int, int], int]:
        """The prefix tree: the number of each node by its parent's number (-1: the prompt) and its token."""
        tree: dict[tuple[int, int], int] = {}
        for answer in self.answers:
            node = -1
            for token in answer[:-1]:
                node = tree.setdefault((node, token), len(tree))
        return tree


def padded(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Rows of unequal length as [rows, longest], padded with 0 on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def same_text(questions: Sequence[Texts]) -> torch.Tensor:
    """Which two tokens of a row are of one text, bool [questions, longest, longest]; padding is with itself alone."""
    longest = max(len(question.row) for question in questions)
    same = torch.eye(longest, dtype=torch.bool).repeat(len(questions), 1, 1)  # [questions, longest, longest]
    for matrix, question in zip(same, questions, strict=True):
        for answer in question.answers:
            text = torch.tensor([*range(len(question.prompt)), *question.logit_indices(answer)[1:]])
            matrix[text[:, None], text] = True
    return same


def tree_mask(
    mask: torch.Tensor | None, positions: torch.Tensor, same: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """A layer's mask of one plain text, turned into the mask of rows that hold several texts.

    Args:
        mask: of the plain text, [1, 1, queries, keys]: bool, true where a key is attended to, or a number to add to the
            scores, 0 where it is; None where every query attends to all keys up to its own position.
        positions: of each token in its text, [rows, tokens].
        same: which tokens are of one text, [rows, tokens, tokens].
        dtype: of the numbers to add.

    Returns:
        [rows, 1, tokens, tokens], bool where there was no mask or a bool one, else of ``dtype``.
    """
    queries, keys = positions[:, :, None], positions[:, None, :]  # [rows, tokens, 1], [rows, 1, tokens]
    if mask is None:
        attended = queries >= keys  # [rows, tokens, tokens]
    else:
        # the window of a sliding layer is in the mask: look up each pair of positions
        attended = (mask if mask.dtype == torch.bool else mask == 0)[0, 0][queries, keys]
    attended = (attended & same)[:, None]
    if mask is None or mask.dtype == torch.bool:
        return attended
    return torch.zeros(attended.shape, dtype=dtype, device=same.device).masked_fill(~attended, torch.finfo(dtype).min)
