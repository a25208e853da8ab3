"""Linear layers whose activations are rounded as they come, with a scale for each token."""

from abc import abstractmethod
from typing import ClassVar

import torch

from harness.model.weights.linear import ReplacementLayer

_TINY = 2.0**-100
"""Far below any activation, and such that ``levels`` over it is a float32: a token of zeros stays one."""


class ByToken(ReplacementLayer):
    """A linear layer over activations in few bits: y = product(round(levels x / a)) a / levels, a = max|x| of a token.

    Each token has its own scale, so a token with massive activations spoils no other, and a row of a batch gives the
    same whatever the others are.

    Attributes:
        levels: the largest value that an activation is given.
        bias: of shape [out].
    """

    levels: ClassVar[float]
    bits = 8
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).float()  # [tokens, in]
        y = self.product(*scaled(tokens, self.levels))  # [tokens, out]
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    @abstractmethod
    def product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The product of the weights with activations that are to be rounded.

        Args:
            x: float32 [tokens, in], of at most ``levels``.
            scale: of each token, float32 [tokens, 1].

        Returns:
            float32 [tokens, out], scaled.
        """


def scaled(tokens: torch.Tensor, levels: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations float32 [tokens, in] of at most ``levels``, and what they are to be multiplied by, [tokens, 1]."""
    largest = tokens.abs().amax(1, keepdim=True).clamp(min=_TINY)  # [tokens, 1]
    return tokens * (levels / largest), largest / levels
