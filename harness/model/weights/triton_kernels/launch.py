"""How large the pieces are into which a product is cut: by a fixed rule, so that two runs add in the same order.

A card reads its memory at full speed while some tens of kilobytes a multiprocessor are on their way. So programs are
made small until there are a few for each multiprocessor, first by fewer outputs, then by parts of the inputs.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

PROGRAMS: Final = 3
"""Programs for each multiprocessor, so that some load while others add."""


@dataclass(frozen=True)
class Cut:
    """The piece of a product that a program computes.

    Attributes:
        rows: outputs.
        tokens: tokens.
        chunk: spans, or blocks, that are loaded at once.
        parts: pieces into which the inputs are cut, whose results are added at the end.
        warps, stages: Triton's num_warps and num_stages.
    """

    rows: int
    tokens: int
    chunk: int
    parts: int = 1
    warps: int = 4
    stages: int = 3


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a card; 1 where Triton interprets its kernels."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def vector_cut(out: int, spans: int, processors: int) -> Cut:
    """For one token: up to 8 outputs share the token's inputs, 2 KiB of each at once."""
    rows = 8
    while rows > 1 and out < rows * PROGRAMS * processors:
        rows //= 2
    return Cut(rows, 1, min(128, power_above(spans)))


def tile_cut(out: int, tokens: int, spans: int, group: int, processors: int, size: int) -> Cut:
    """For several tokens.

    Args:
        group: spans of a group; 0: all.
        size: bytes of an activation.
    """
    few = tokens <= 16
    rows = 32 if few else 64
    # float32 has no matrix units here and would not fit into registers
    across = min(power_above(max(tokens, 16)), 32 if size == 4 else 128)
    chunk = 16 if few else 4
    while group % chunk:
        chunk //= 2
    if size == 1:
        chunk = max(chunk, 2)  # products of int8 add over at least 32 inputs
    programs = -(-out // rows) * -(-tokens // across)
    wanted = (PROGRAMS if few else 2) * processors
    chunks = -(-spans // chunk)
    parts = max(1, min(wanted // programs, chunks // 4, 16))
    return Cut(rows, across, chunk, parts, warps=2 if few else 4, stages=4 if few else 3)


def block_cut(groups: int, rows: int, blocks: int, tokens: int, processors: int, size: int) -> Cut:
    """For blocks of ``rows`` outputs of one input, of which all groups have ``blocks`` together.

    Args:
        size: bytes of an activation.
    """
    across = 1 if tokens == 1 else min(power_above(max(tokens, 16)), 64)
    chunk = 2048 // rows if tokens == 1 else 32  # products of int8 add over at least 32 inputs
    if size == 4 and tokens > 1:
        chunk = 16
    programs = groups * -(-tokens // across)
    chunks = -(-blocks // (chunk * groups))
    parts = max(1, min(PROGRAMS * processors // programs, chunks // 2, 16))
    return Cut(rows, across, chunk, parts, warps=2 if rows == 16 and tokens > 1 else 4)


def power_above(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(count - 1, 0).bit_length()
