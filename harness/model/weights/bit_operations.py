"""Bit-operations: multiply-adds times the bits of both numbers, as papers on quantization count them on paper.

GPUSQ (arXiv:2305.10727) calls them FLOPs: 2:4 in eight bits is 2 x 32 x 32 / (8 x 8) = 32 times fewer than dense
float32. FLOPs are half at the most, and no card is 32 times as fast; so they are said as what they are, in a sentence.
"""

from collections.abc import Iterator

from torch import nn

from harness.contract.decoder import Decoder
from harness.contract.linears import LINEAR
from harness.model.weights.linear import computed_by
from harness.model.weights.replaced import zeros


def fewer_bit_operations(model: Decoder) -> float | None:
    """How many times fewer the linear layers of the decoder layers do for a token than those of the dense model.

    None where none of them has both its weights and activations in few bits, and where experts do the most of it.
    """
    blocks = model.anatomy.blocks
    if any(block.mlp.experts is not None for block in blocks):
        return None
    bits: int = 8 * model.module.dtype.itemsize
    own = [linear for block in blocks for linear in (*block.attention.linears(), *block.mlp.linears())]
    present = [part for block in model.live for part in block.module.modules() if isinstance(part, LINEAR)]
    if all((replacement := computed_by(linear)) is None or replacement.bits is None for linear in present):
        return None
    dense = sum(map(_macs, own)) * bits * bits
    return dense / sum(_operations(present, bits))


def _operations(linears: list[nn.Module], bits: int) -> Iterator[float]:
    """Of each linear layer for a token; two zeros of each four neighbours are skipped, as a card with 2:4 would."""
    for linear in linears:
        replacement, macs = computed_by(linear), float(_macs(linear))
        if replacement is not None and replacement.macs_per_token < macs:
            macs = replacement.macs_per_token
        elif zeros(linear) == "2:4":
            macs /= 2
        yield macs * (bits if replacement is None or replacement.bits is None else replacement.bits) ** 2


def _macs(linear: nn.Module) -> int:
    """Multiply-adds of the dense product for a token; GPT-2's class has other names for its shape."""
    out, inputs = ("out_features", "in_features") if isinstance(linear, nn.Linear) else ("nf", "nx")
    count: int = getattr(linear, out) * getattr(linear, inputs)
    return count


def note(model: Decoder) -> list[str]:
    """A sentence about them for the record; none where there is nothing to say."""
    fewer = fewer_bit_operations(model)
    if fewer is None:
        return []
    what = "multiply-adds times the bits of both numbers"
    return [f"on paper, linear layers do {fewer:.3g} times fewer bit-operations than dense ({what}): no FLOPs, no time"]
