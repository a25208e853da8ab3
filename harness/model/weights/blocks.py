"""A weight's blocks that are not all zero, in the layout that the block-sparse kernels read."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from harness.model.weights.int8 import quantize_rows

Number = Literal["int8", "fp32"]

MOST_INPUTS = 2**16
"""Inputs are numbered in two bytes."""

TENSORS = ("start", "column", "value", "scale", "offset")
"""The tensors of ``Blocks`` in the order in which a kernel takes them."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of several outputs of one input, grouped by the outputs that share them.

    Attributes:
        rows: outputs of a block.
        out: outputs of the linear layer.
        start: where each group's blocks begin, int32 [groups + 1]; counted in quads of blocks for int8.
        column: each block's input, uint16 [blocks].
        value: the weights: float32 [blocks, rows], or int8 [quads, rows, 4], filled up with zeros.
        scale: of each output, float32 [out]; None for float32.
        offset: -128 times the sum of each output's weights, int32 [groups * rows]; None for float32.
        weight_count: weights in the blocks, without what fills up.
    """

    rows: int
    out: int
    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    weight_count: int

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What a kernel is given, in the order of ``TENSORS``."""
        return tuple(getattr(self, name) for name in TENSORS)

    @classmethod
    def of(cls, weight: torch.Tensor, rows: int, number: Number) -> "Blocks":
        """The blocks of a weight [out, in]."""
        out, shape = len(weight), (-1, rows, weight.shape[1])
        grouped = pad(weight.float(), (0, 0, 0, -out % rows)).view(shape)  # [groups, rows, in]
        kept = (grouped != 0).any(1)  # [groups, in]
        counts = kept.sum(1)  # [groups]
        quad = 4 if number == "int8" else 1
        ends = ((counts + quad - 1) // quad).cumsum(0)
        start = torch.cat([ends.new_zeros(1), ends])  # [groups + 1]
        group, column = kept.nonzero(as_tuple=True)  # both [blocks], group by group
        # a group's first block goes where its first quad begins
        slot = torch.arange(len(group), device=weight.device) - (counts.cumsum(0) - counts)[group] + quad * start[group]
        columns = torch.zeros(quad * int(ends[-1]), dtype=torch.int32, device=weight.device)
        columns[slot] = column.int()
        weight_count = int(counts.sum()) * rows - int(counts[-1]) * (-out % rows)
        scale = offset = None
        if number == "int8":
            quantized, scale = quantize_rows(weight)
            grouped = pad(quantized, (0, 0, 0, -out % rows)).view(shape)
            offset = (-128 * grouped.sum(2, dtype=torch.int32)).flatten()
        value = torch.zeros(len(columns), rows, dtype=grouped.dtype, device=weight.device)
        value[slot] = grouped[group, :, column]
        if number == "int8":
            value = value.view(-1, 4, rows).transpose(1, 2).contiguous()  # [quads, rows, 4]
        return cls(rows, out, start.int(), columns.to(torch.uint16), value, scale, offset, weight_count)
