"""The products of a packed weight with one token and with several, in Triton's language, and int8 activations.

    y_r = sum_g s_rg sum_(k in g) (q_rk - z_rg) x_k

Codes are whole numbers of at most nine bits, or eight-bit floats, which every float type of activations holds exactly.
They are multiplied as they are and a group's sum is scaled in float32. int8 activations are summed in int32.
"""

import triton
import triton.language as tl


@triton.jit
def decoded(codes: tl.tensor, NUMBER: tl.constexpr) -> tl.tensor:
    """Numbers from codes of eight bits; those of e4m3 are 256 times too small.

    The bits of an e4m3 number, moved to where float16 has its exponent and mantissa, are that number times
    2^(7 - 15), subnormal ones included. So no card needs to know the format.
    """
    if NUMBER == "int8":
        return codes.to(tl.int8, bitcast=True)
    elif NUMBER == "e4m3":
        bits = codes.to(tl.uint16)
        return (((bits & 128) << 8) | ((bits & 127) << 7)).to(tl.float16, bitcast=True)
    else:
        return codes.to(tl.int16)


@triton.jit
def at_bit(words: tl.tensor, bit: tl.constexpr, NUMBER: tl.constexpr) -> tl.tensor:
    """Numbers from the codes at a bit of words: float32, but for whole numbers c of b bits 1 + c / 2^b.

    That is their bits below the exponent of 1: a shift, a mask, and no conversion, of which a card does too few.
    """
    if NUMBER == "e4m3":
        code = words >> bit
        return (((code & 128) << 24) | ((code & 127) << 20)).to(
            tl.float32, bitcast=True
        ) * 1.329227995784916e36  # 2^120
    else:
        size: tl.constexpr = 4 if NUMBER == "int4" else 8
        left: tl.constexpr = 23 - size - bit
        moved = words << left if left >= 0 else words >> -left
        return ((moved & (0x800000 - (0x800000 >> size))) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def times(total: tl.tensor, words: tl.tensor, values: tl.tensor, bit: tl.constexpr, NUMBER: tl.constexpr) -> tl.tensor:
    """The total [rows, spans, 4], with the codes at a bit of the words times values [spans, 4] added."""
    if values.dtype == tl.int32:
        return total + ((words << (24 - bit)) >> 24) * values[None]
    else:
        return total + at_bit(words, bit, NUMBER) * values[None]


@triton.jit
def vector(
    x: tl.tensor,
    words: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    y: tl.tensor,
    out: tl.tensor,
    inputs: tl.tensor,
    spans: tl.tensor,
    groups: tl.tensor,
    NUMBER: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPANS: tl.constexpr,
) -> None:
    """One token, x [in], with the weight as words of four bytes: y [out]. Each program computes ``ROWS`` outputs.

    Args:
        GROUP: spans of a group; 0 for a group that is a whole row.
        SPANS: spans of a row that are loaded at once.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, 4)
    integer: tl.constexpr = x.dtype.element_ty == tl.int8
    kind: tl.constexpr = tl.int32 if integer else tl.float32
    halves: tl.constexpr = 2 if NUMBER == "int4" else 1
    levels: tl.constexpr = 16 if NUMBER == "int4" else 256
    total = tl.zeros([ROWS, SPANS], kind)
    start = row.to(tl.int64) * spans
    for first in range(0, spans, SPANS):
        span = first + tl.arange(0, SPANS)
        present = (row < out)[:, None] & (span < spans)[None, :]  # [ROWS, SPANS]
        line = words + (start[:, None] + span[None, :])[:, :, None] * 4
        word = tl.load(line + place[None, None, :], mask=present[:, :, None], other=0)  # [ROWS, SPANS, 4]
        if NUMBER == "int8" and not integer:
            word = word ^ -0x7F7F7F80  # 128 more in every byte
        product = tl.zeros([ROWS, SPANS, 4], kind)
        amount = tl.zeros([SPANS], kind)
        for half in tl.static_range(halves):
            k = (span * halves + half)[:, None] * 16 + tl.arange(0, 16)[None, :]  # [SPANS, 16]
            values = tl.load(x + k, mask=k < inputs, other=0).to(kind)
            even, odd = tl.split(tl.reshape(values, [SPANS, 4, 2, 2]))  # both [SPANS, 4, 2]
            first_of_four, third = tl.split(even)  # both [SPANS, 4]
            second, fourth = tl.split(odd)
            product = times(product, word, first_of_four, 4 * half, NUMBER)
            product = times(product, word, second, 4 * half + 8, NUMBER)
            product = times(product, word, third, 4 * half + 16, NUMBER)
            product = times(product, word, fourth, 4 * half + 24, NUMBER)
            amount += tl.sum(first_of_four + second + third + fourth, 1)
        part = tl.sum(product, 2)  # [ROWS, SPANS]
        if not integer:
            of_group = row[:, None] * groups + (span // GROUP if GROUP else span * 0)[None, :]  # [ROWS, SPANS]
            if NUMBER != "e4m3":
                point = levels / 2
                if zero is not None:
                    point = tl.load(zero + of_group, mask=present, other=0).to(tl.float32)
                part = part * levels - (levels + point) * amount[None, :]
            part *= tl.load(scale + of_group, mask=present, other=0).to(tl.float32)
        total += part
    result = tl.sum(total, 1).to(tl.float32)  # [ROWS]
    if integer:
        result *= tl.load(scale + row, mask=row < out, other=0).to(tl.float32)
    tl.store(y + row, result.to(y.dtype.element_ty), mask=row < out)


@triton.jit
def tile(
    x: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    out: tl.tensor,
    inputs: tl.tensor,
    spans: tl.tensor,
    groups: tl.tensor,
    share: tl.tensor,
    NUMBER: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPANS: tl.constexpr,
) -> None:
    """Tokens x [tokens, in] with the weight: y [parts, tokens, out], of which the parts are still to be added.

    Each program computes ``ROWS`` outputs of ``TOKENS`` tokens over ``share`` spans of the inputs. The weight is the
    left operand: converted in registers, it needs no shared memory of its own.

    Args:
        GROUP: spans of a group; 0 for a group that is a whole row.
        SPANS: spans of a row that are loaded at once; they divide a group.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(2)
    kind: tl.constexpr = x.dtype.element_ty
    integer: tl.constexpr = kind == tl.int8
    total = tl.zeros([ROWS, TOKENS], tl.int32 if integer else tl.float32)
    line = codes + row.to(tl.int64)[:, None] * spans * 16
    column = x + token.to(tl.int64)[None, :] * inputs
    last = tl.minimum(spans, (part + 1) * share)
    for first in range(part * share, last, SPANS):
        byte = first * 16 + tl.arange(0, SPANS * 16)
        present = (row < out)[:, None] & (byte < last * 16)[None, :]
        code = tl.load(line + byte[None, :], mask=present, other=0)  # [ROWS, SPANS * 16]
        of_group = row * groups + (first // GROUP if GROUP else 0)  # [ROWS]
        if NUMBER == "int4":
            low, high = (code & 15).to(tl.int16), (code >> 4).to(tl.int16)
        else:
            low, high = decoded(code, NUMBER), decoded(code, NUMBER)
        if zero is not None:
            point = tl.load(zero + of_group, mask=row < out, other=0).to(tl.int16)[:, None]
            low, high = low - point, high - point
        elif NUMBER == "int4":
            low, high = low - 8, high - 8
        if NUMBER == "int4":
            k = (byte // 16) * 32 + byte % 16
            values = tl.load(column + k[:, None] + 16, (k + 16 < inputs)[:, None] & (token < tokens)[None, :], other=0)
            product = tl.dot(high.to(kind), values, input_precision="ieee")  # [ROWS, TOKENS]
        else:
            k = byte
            product = tl.zeros([ROWS, TOKENS], total.dtype)
        values = tl.load(column + k[:, None], (k < inputs)[:, None] & (token < tokens)[None, :], other=0)
        if integer:
            total = tl.dot(low, values, total, out_dtype=tl.int32)
        else:
            product = tl.dot(low.to(kind), values, product, input_precision="ieee")
            total += product * tl.load(scale + of_group, mask=row < out, other=0).to(tl.float32)[:, None]
    result = total.to(tl.float32)
    if integer:
        result *= tl.load(scale + row, mask=row < out, other=0).to(tl.float32)[:, None]
    if NUMBER == "e4m3":
        result *= 256
    place = (part.to(tl.int64) * tokens + token)[None, :] * out + row[:, None]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=(row < out)[:, None] & (token < tokens)[None, :])


@triton.jit
def rounded(
    x: tl.tensor, codes: tl.tensor, scale: tl.tensor, inputs: tl.tensor, LEVELS: tl.constexpr, CHUNK: tl.constexpr
) -> None:
    """A token's activations x [in] as codes int8 [in] of at most ``LEVELS``, and what they are to be multiplied by.

    By the same steps as ``by_token.scaled``, each of them rounded: it is launched with no products and sums fused.
    """
    token = tl.program_id(0).to(tl.int64)
    line, given = codes + token * inputs, x + token * inputs
    most, strange = tl.zeros([CHUNK], tl.float32), tl.zeros([CHUNK], tl.float32)
    for first in range(0, inputs, CHUNK):
        place = first + tl.arange(0, CHUNK)
        value = tl.load(given + place, mask=place < inputs, other=0).to(tl.float32)
        most = tl.maximum(most, tl.abs(value))
        strange += value - value  # no number where a value is none, or infinite
    largest = tl.maximum(tl.max(most, 0), 7.888609052210118e-31) + tl.sum(strange, 0)  # 2^-100
    inverse = tl.div_rn(1.0, largest)
    tl.store(scale + token, tl.div_rn(largest, LEVELS * 1.0))
    for first in range(0, inputs, CHUNK):
        place = first + tl.arange(0, CHUNK)
        value = tl.load(given + place, mask=place < inputs, other=0).to(tl.float32) * (inverse * LEVELS)
        whole = (value + 12582912.0) - 12582912.0  # 1.5 * 2^23, beside which a float32 has no halves
        tl.store(line + place, whole.to(tl.int8), mask=place < inputs)
