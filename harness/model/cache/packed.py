"""Numbers of a cache in few bits: rounded in groups to whole steps between the least and the greatest of each group."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packed:
    """Keys or values of whole groups of tokens.

    Attributes:
        codes: as many to a byte as fit, neighbours along the tokens, uint8 [rows, heads, groups, tokens of a group *
            bits / 8, width].
        low, step: of each group, in the number format of the model, [rows, heads, groups, 1, width] where a group is a
            channel's tokens, [rows, heads, groups, tokens of a group, parts of the width] where it is a token's
            channels.
        bits: of a number.
    """

    codes: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    bits: int

    @classmethod
    def of(cls, numbers: torch.Tensor, bits: int, group: int, channels: int | None = None) -> "Packed":
        """Round numbers, [rows, heads, tokens, width], of whole groups of tokens.

        Args:
            group: tokens that are packed together; whole bytes of codes.
            channels: neighbouring channels of a token that share a scale; None: a channel's tokens share theirs.
        """
        blocks = torch.unflatten(numbers, 2, (-1, group))  # [rows, heads, groups, tokens of a group, width]
        parts = blocks if channels is None else torch.unflatten(blocks, -1, (-1, channels))
        low, high = parts.aminmax(dim=-2 if channels is None else -1, keepdim=True)
        step = ((high - low).float() / (2**bits - 1)).to(numbers.dtype)
        # of a group of equal numbers the step is 0, and so are its codes
        codes = torch.where(step > 0, (parts.float() - low.float()) / step.float(), 0.0)
        codes = codes.round().clamp(0, 2**bits - 1).to(torch.uint8).view_as(blocks)
        if channels is not None:
            low, step = low.squeeze(-1), step.squeeze(-1)
        return cls(_packed(codes, bits), low, step, bits)

    @property
    def groups(self) -> int:
        """Groups of tokens of each row."""
        return self.codes.shape[2]

    def numbers(self) -> torch.Tensor:
        """What attention reads, [rows, heads, tokens, width]."""
        codes = _unpacked(self.codes, self.bits).to(self.low.dtype)  # [rows, heads, groups, tokens of a group, width]
        if self.low.shape[-1] == codes.shape[-1]:
            numbers = torch.addcmul(self.low, codes, self.step)
        else:
            parts = torch.unflatten(codes, -1, (self.low.shape[-1], -1))
            numbers = torch.addcmul(self.low[..., None], parts, self.step[..., None]).flatten(-2)
        return numbers.flatten(2, 3)

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Packed":
        """With the same done to all tensors, which have rows, heads and groups in common."""
        return Packed(change(self.codes), change(self.low), change(self.step), self.bits)

    def followed(self, more: "Packed") -> "Packed":
        """With more groups after these."""
        codes, low = torch.cat([self.codes, more.codes], 2), torch.cat([self.low, more.low], 2)
        return Packed(codes, low, torch.cat([self.step, more.step], 2), self.bits)

    def put(self, row: int, start: int, more: "Packed") -> None:
        """Write groups of one row over those from ``start`` on, in place."""
        for own, new in zip((self.codes, self.low, self.step), (more.codes, more.low, more.step), strict=True):
            own[row, :, start : start + more.groups] = new[0]


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes, [..., tokens, width], as bytes, [..., tokens * bits / 8, width]."""
    if bits == 8:
        return codes
    parts = torch.unflatten(codes, -2, (-1, 8 // bits))  # [..., bytes, codes of a byte, width]
    packed = parts[..., 0, :].clone()
    for place in range(1, 8 // bits):
        packed |= parts[..., place, :] << (bits * place)
    return packed


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 8:
        return packed
    parts = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(parts, -2).flatten(-3, -2)
