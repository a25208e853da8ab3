"""Weights of a number format in the layout that the Triton kernels read: rows of whole spans of 16 bytes.

A span is what a thread loads at once. Its bytes hold the codes of 16 inputs in order, or, of four bits, those of 32
inputs: byte i has input i in its low half and input 16 + i in its high half, so that a thread's inputs are neighbours.
"""

from typing import Final, Literal

import torch
from torch.nn.functional import pad

from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, Quantized
from harness.model.weights.triton_kernels.available import missing

SPAN: Final = 16
"""Bytes of a span."""
TYPES: Final = ("float32", "bfloat16", "float16")
"""Types of activations."""

Number = Literal["int8", "uint8", "int4", "e4m3"]
"""How a kernel reads a code; int4's are 0 to 15 also in a symmetric format, where 8 stands for zero."""
NUMBERS: Final[tuple[Number, ...]] = ("int8", "uint8", "int4", "e4m3")


def span_inputs(number: Number) -> int:
    """Inputs of a span."""
    return 2 * SPAN if number == "int4" else SPAN


def takes(form: NumberFormat, number: Number) -> bool:
    """Whether the codes of a format are read so."""
    if form.scale not in ("float32", "float16") or form.zero != "code":
        return False
    if form.element != "int":
        return form.element == number
    return f"{'u' if form.bits == 8 and not form.symmetric else ''}int{form.bits}" == number


def refuses(form: NumberFormat, layer: Layer, number: Number) -> str | None:
    """Why no kernel can take a layer in a format here, in words; None where one may."""
    if layer.dtype not in TYPES:
        return f"it takes {', '.join(TYPES[:-1])} and {TYPES[-1]}, and the model is in {layer.dtype}"
    if form.group is not None and form.group % span_inputs(number):
        return f"it takes groups of a multiple of {span_inputs(number)} inputs, and the format is {form.label}"
    return missing()


def packed(weight: Quantized, dtype: torch.dtype, number: Number) -> tuple[torch.Tensor, ...]:
    """What the kernels read of a weight [out, in].

    Returns:
        the codes, uint8 [out, spans, 16], of which no input is multiplied with what fills the last span up; the scales
        [out, groups], in the type that the format stores; the zero points, uint8 [out, groups], where there are any.
    """
    scale = weight.scale.to(torch.float16 if weight.format.scale == "float16" else torch.float32).contiguous()
    zeros = () if weight.zero is None else (weight.zero.contiguous(),)
    codes = weight.codes.int() + 8 if number == "int4" and weight.zero is None else weight.codes
    return spans(codes, number), scale, *zeros


def spans(codes: torch.Tensor, number: Number) -> torch.Tensor:
    """Codes [out, in] in spans, uint8 [out, spans, 16]."""
    codes = codes.view(torch.uint8) if codes.dtype == torch.int8 else codes.to(torch.uint8)
    codes = pad(codes, (0, -codes.shape[1] % span_inputs(number)))
    if number == "int4":
        low, high = codes.view(len(codes), -1, 2, SPAN).unbind(2)  # both [out, spans, 16]
        codes = low | (high << 4)
    return codes.reshape(len(codes), -1, SPAN).contiguous()
