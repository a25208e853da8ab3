"""A schedule of depth: how many layers a token skips follows from its place in the text, and never falls."""

from collections.abc import Callable, Sequence

import torch

from harness.model.tokens.token_depth import TokenPolicy, Tokens


class Schedule(TokenPolicy):
    """Skip the first so many of some layers, more of them the later a token comes.

    What is skipped once is skipped by all later tokens of the row, so no layer is filled.

    Args:
        layers: indices in the dense model, in the order in which they are skipped.
        skipped: how many of them each token skips, [rows, tokens]; must not fall along a row.
    """

    def __init__(self, layers: Sequence[int], skipped: Callable[[Tokens], torch.Tensor]) -> None:
        self._rank = {layer: rank for rank, layer in enumerate(layers)}
        self._skipped = skipped

    def fills(self, layer: int) -> bool:
        """No: later tokens skip it too."""
        return False

    def begin(self, tokens: Tokens) -> None:
        """Look the tokens up in the schedule."""
        self._now = self._skipped(tokens)
        self._most = int(self._now.max())

    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """The tokens that do not skip it yet."""
        rank = self._rank.get(layer, self._most)
        return None if rank >= self._most else self._now <= rank
