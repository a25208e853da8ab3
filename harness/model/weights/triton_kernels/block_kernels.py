"""The products of a block-sparse weight with one token and with several, in Triton's language.

A program has the blocks of one group of outputs, or a part of them. Float numbers are summed in float32, int8 in int32.
"""

import triton
import triton.language as tl


@triton.jit
def share(start: tl.tensor, group: tl.tensor, part: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """The first block of a part of a group's blocks, and the one after its last."""
    first = tl.load(start + group)
    last = tl.load(start + group + 1)
    each = (last - first + PARTS - 1) // PARTS
    return first + part * each, tl.minimum(last, first + (part + 1) * each)


@triton.jit
def vector(
    x: tl.tensor,
    start: tl.tensor,
    column: tl.tensor,
    value: tl.tensor,
    y: tl.tensor,
    out: tl.tensor,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """One token, x [in], with the blocks: y [parts, out], of which the parts are still to be added."""
    group, part = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, ROWS)
    kind: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    total = tl.zeros([BLOCKS, ROWS], kind)
    begin, end = share(start, group, part, PARTS)
    for first in range(begin, end, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        number = tl.load(column + block, mask=block < end, other=0).to(tl.int32) & 0xFFFF
        token = tl.load(x + number, mask=block < end, other=0).to(kind)  # [BLOCKS]
        place = block.to(tl.int64)[:, None] * ROWS + within[None, :]
        weight = tl.load(value + place, mask=(block < end)[:, None], other=0).to(kind)  # [BLOCKS, ROWS]
        total += weight * token[:, None]
    row = group * ROWS + within
    tl.store(y + part * out + row, tl.sum(total, 0).to(y.dtype.element_ty), mask=row < out)


@triton.jit
def tile(
    x: tl.tensor,
    start: tl.tensor,
    column: tl.tensor,
    value: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    out: tl.tensor,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Tokens x [in, tokens] with the blocks: y [parts, tokens, out], of which the parts are still to be added.

    The activations have an input's tokens side by side, so that the inputs of a group are gathered as whole lines.
    """
    group, part = tl.program_id(0), tl.program_id(2)
    within = tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    kind: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    total = tl.zeros([ROWS, TOKENS], kind)
    begin, end = share(start, group, part, PARTS)
    for first in range(begin, end, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        number = tl.load(column + block, mask=block < end, other=0).to(tl.int32) & 0xFFFF
        line = x + number.to(tl.int64)[:, None] * tokens + token[None, :]
        gathered = tl.load(line, mask=(block < end)[:, None] & (token < tokens)[None, :], other=0)  # [BLOCKS, TOKENS]
        place = block.to(tl.int64)[None, :] * ROWS + within[:, None]
        weight = tl.load(value + place, mask=(block < end)[None, :], other=0)  # [ROWS, BLOCKS]
        total = tl.dot(weight, gathered, total, input_precision="ieee", out_dtype=kind)
    row = group * ROWS + within
    line = y + (part.to(tl.int64) * tokens + token)[None, :] * out + row[:, None]
    tl.store(line, total.to(y.dtype.element_ty), mask=(row < out)[:, None] & (token < tokens)[None, :])
