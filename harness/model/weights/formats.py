"""Number formats of weights: how a value of few bits stands for a weight, how many bytes it takes, and its packing.

A weight w of a group that shares a scale s and, in asymmetric formats, a zero point z becomes a code of few bits:

    integers    q = clamp(round(w / s) + z),  w' = (q - z) s,  s = max|w| / (2^(b-1) - 1), z = 0,
                                           or s = (max(w, 0) - min(w, 0)) / (2^b - 1), z = round(-min(w, 0) / s)
    floats      q = the nearest element to w / s, ties to the even code,  w' = element(q) s,  s = max|w| / largest

Groups run along the inputs. A scale is rounded to the type that it is stored in before the codes are chosen, so that
every product over a format, whatever its kernel, is one over the same numbers. The power-of-two scales of microscaling
formats follow "OCP Microscaling Formats (MX) Specification" 1.0: "floor" may saturate, "rceil" never does. NVFP4's are
floats of eight bits (E4M3) times a second one, a float32 for the whole weight: max|w| / (448 largest).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Final, Literal

import torch
from torch.nn.functional import pad

from harness.core.errors import MethodError

Element = Literal["int", "e4m3", "e5m2", "e2m1", "e2m3", "e3m2"]
"""What a code stands for: an integer, or a float with a sign, so many exponent bits, and so many mantissa bits."""
Scale = Literal["float32", "float16", "floor", "rceil", "e4m3"]
"""The type of a scale; "floor" and "rceil" are the two rules for one that is a power of two, in eight bits; one that is
"e4m3" is multiplied by a second scale, a float32 that the whole weight shares."""
Zero = Literal["code", "float16"]

_TINY: Final = {"float32": torch.finfo(torch.float32).tiny, "float16": 2.0**-24}
_IN_EIGHT_BITS: Final = ("floor", "rceil", "e4m3")
_LEAST_E4M3: Final = 2.0**-9
_LEAST_SECOND: Final = torch.finfo(torch.float32).tiny / _LEAST_E4M3
"""Of which the least scale is a float32 of full precision."""
_SPECIAL: Final = {"e4m3": 1, "e5m2": 4}
"""Codes at the end of the positive ones that are infinite or not a number."""


@dataclass(frozen=True)
class NumberFormat:
    """A number format of the weights of a linear layer.

    Attributes:
        bits: of a code, 2 to 8.
        group: inputs that share a scale; None: all of an output row.
        symmetric: without zero points.
        element: what a code stands for.
        scale: the type of a scale.
        zero: the type of a zero point: a code, or a number between codes.
    """

    bits: int = 8
    group: int | None = None
    symmetric: bool = True
    element: Element = "int"
    scale: Scale = "float32"
    zero: Zero = "code"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise MethodError(f"a code has 2 to 8 bits, not {self.bits}")
        if self.group is not None and self.group < 1:
            raise MethodError(f"a group has at least one input, not {self.group}")
        if self.element != "int" and (self.bits != 1 + int(self.element[1]) + int(self.element[3])):
            raise MethodError(f"{self.element} has {1 + int(self.element[1]) + int(self.element[3])} bits")
        if not self.symmetric and (self.element != "int" or self.scale in _IN_EIGHT_BITS):
            raise MethodError("floats, and scales of eight bits, are symmetric: they have no zero points")
        if self.symmetric and self.zero != "code":
            raise MethodError("a symmetric format has no zero points, of whatever type")

    def groups(self, inputs: int) -> int:
        """Groups in a row of so many inputs.

        Raises:
            MethodError: the group does not divide the row.
        """
        self.check_inputs([inputs])
        return inputs // (self.group or inputs)

    def check_inputs(self, widths: Collection[int]) -> None:
        """Refuse a group that does not divide the inputs of every linear layer.

        Raises:
            MethodError: with groups that do.
        """
        wrong = next((width for width in widths if width % (self.group or width)), None)
        if wrong is not None:
            common = gcd(*widths)
            sizes = [size for size in range(min(256, common), 0, -1) if common % size == 0]
            powers = [size for size in sizes if size.bit_count() == 1 and size >= 8] or sizes
            raise MethodError(
                f"group={self.group} does not divide the {wrong} inputs of a linear layer: give group="
                + " or group=".join(map(str, powers[:3]))
            )

    @property
    def largest(self) -> float:
        """The largest value of a code of a symmetric format."""
        return float(2 ** (self.bits - 1) - 1 if self.element == "int" else _magnitudes(self.element)[-1])

    @property
    def label(self) -> str:
        """What a person reads, such as "int8", "int4 g128" or "symmetric int4 g128": int8 by rows is symmetric."""
        name = f"int{self.bits}" if self.element == "int" else f"fp{self.bits} {self.element}"
        if self.scale in _IN_EIGHT_BITS:
            name = f"{name} {self.scale}"
        # by groups the usual integers have zero points, by rows they have none
        unusual = self.element == "int" and self.symmetric != (self.group is None)
        name = f"{'symmetric' if self.symmetric else 'asymmetric'} {name}" if unusual else name
        name = name if self.group is None else f"{name} g{self.group}"
        return name if self.zero == "code" else f"{name} {self.zero} zeros"

    def nbytes(self, out: int, inputs: int) -> int:
        """Bytes of a packed weight [out, in], its scales and zero points included."""
        groups = self.groups(inputs)
        scale = 1 if self.scale in _IN_EIGHT_BITS else {"float32": 4, "float16": 2}[self.scale]
        zeros = 0 if self.symmetric else out * (row_bytes(groups, self.bits) if self.zero == "code" else 2 * groups)
        second = 4 if self.scale == "e4m3" else 0
        return out * row_bytes(inputs, self.bits) + out * groups * scale + zeros + second


@dataclass(frozen=True)
class Quantized:
    """A weight in a number format.

    Attributes:
        format: that format.
        codes: [out, in]; int8 for symmetric integers, of which 4 bits give -7..7 and 8 bits -127..127; uint8 for
            asymmetric ones, 0..2^bits - 1, and for floats, whose bits they are.
        scale: float32 [out, groups], of values that the format's own type holds exactly, times the second scale where
            there is one.
        zero: [out, groups]: uint8, 0..2^bits - 1, or float32 that the format's own type holds exactly; None in a
            symmetric format.
    """

    format: NumberFormat
    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, float32 [out, in]."""
        if self.format.element == "int":
            values = self.codes.float()
        else:
            values = _elements(self.format.element).to(self.codes.device)[self.codes.int()]
        grouped = values.reshape(*self.scale.shape, -1)  # [out, groups, group]
        if self.zero is not None:
            grouped = grouped - self.zero[..., None]
        weight: torch.Tensor = (grouped * self.scale[..., None]).flatten(1)
        return weight

    def to(self, device: str) -> "Quantized":
        """The same weight on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero)

    def packed(self) -> torch.Tensor:
        """The codes as they are stored, uint8 [out, ceil(in * bits / 8)]; see ``pack``."""
        signed = self.codes.dtype == torch.int8
        return pack(self.codes.int() + 2 ** (self.format.bits - 1) * signed, self.format.bits)

    @classmethod
    def of_packed(
        cls, number: NumberFormat, packed: torch.Tensor, inputs: int, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> "Quantized":
        """The weight [out, in] that was packed, with scales and zero points as they were."""
        codes = unpack(packed, number.bits, inputs)
        if number.symmetric and number.element == "int":
            codes = (codes.short() - 2 ** (number.bits - 1)).to(torch.int8)
        return cls(number, codes, scale, zero)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, its scales and zero points included."""
        return self.format.nbytes(*self.codes.shape)


def quantize(weight: torch.Tensor, number: NumberFormat) -> Quantized:
    """Round a weight [out, in] to nearest.

    Raises:
        MethodError: the group does not divide the inputs, or a weight is not finite.
    """
    scale, zero = scales(weight, number)
    return Quantized(number, rounded(weight, scale, zero, number), scale, zero)


def scales(weight: torch.Tensor, number: NumberFormat) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points [out, groups] of a weight [out, in]: they span each group's values.

    Raises:
        MethodError: the group does not divide the inputs, or a weight is not finite.
    """
    if not torch.isfinite(weight).all():
        raise MethodError("a weight that is not finite cannot be rounded: the model's file is damaged")
    return _scales(weight, number, weight.float().abs().amax())


def rounded_rows(values: torch.Tensor, number: NumberFormat) -> torch.Tensor:
    """Activations [rows, in] as they are in a format, each row by itself, a second scale included; float32.

    Raises:
        MethodError: the group does not divide the inputs.
    """
    scale, zero = _scales(values, number, values.float().abs().amax(1, keepdim=True))
    return Quantized(number, rounded(values, scale, zero, number), scale, zero).dequantized()


def rounded(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, number: NumberFormat) -> torch.Tensor:
    """The codes [out, in] that are nearest to a weight [out, in], with scales and zero points [out, groups]."""
    grouped = weight.float().reshape(*scale.shape, -1).contiguous()  # [out, groups, group]
    ratio = grouped / scale[..., None]
    if number.element != "int":
        codes = _nearest(ratio, number.element)
    elif zero is None:
        codes = ratio.round().clamp(-number.largest, number.largest).to(torch.int8)
    else:
        whole = zero.float().round()  # added after rounding, so that halves are rounded as they are without one
        codes = (ratio + (zero - whole)[..., None]).round() + whole[..., None]
        codes = codes.clamp(0, 2**number.bits - 1).to(torch.uint8)
    return codes.flatten(1).contiguous()


def _scales(
    weight: torch.Tensor, number: NumberFormat, largest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points [out, groups] of a weight [out, in].

    Args:
        largest: the largest magnitude of all that share a second scale: [], or [out, 1].
    """
    out, inputs = weight.shape
    grouped = weight.float().reshape(out, number.groups(inputs), -1)  # [out, groups, group]
    if number.symmetric:
        return _stored(grouped.abs().amax(2), number, largest), None
    least, most = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)  # a range that holds 0 has a zero point
    levels = 2**number.bits - 1
    scale = _rounded(most / levels - least / levels, number.scale)  # the difference itself may overflow
    zero = (-least / scale).round().clamp(0, levels)
    return scale, zero.to(torch.uint8) if number.zero == "code" else zero


def _stored(most: torch.Tensor, number: NumberFormat, largest: torch.Tensor) -> torch.Tensor:
    """The scale of groups whose largest magnitudes are ``most``, as its type holds it."""
    if number.scale in ("float32", "float16"):
        return _rounded(most / number.largest, number.scale)
    if number.scale == "e4m3":
        greatest = _magnitudes("e4m3")[-1].item()
        second = (largest / (greatest * number.largest)).clamp(min=_LEAST_SECOND)
        ratio = (most / number.largest / second).clamp(_LEAST_E4M3, greatest)
        return ratio.to(torch.float8_e4m3fn).float() * second
    highest = int(torch.frexp(torch.tensor(number.largest)).exponent)  # largest < 2^highest
    if number.scale == "floor":  # the largest element's own power of two becomes that of the largest weight
        power = torch.frexp(most).exponent - highest
    else:
        mantissa, exponent = torch.frexp(most / number.largest)  # mantissa 2^exponent, mantissa in [0.5, 1)
        power = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(most), power.clamp(-126, 128 - highest))  # so that no value is infinite


def _rounded(scale: torch.Tensor, name: Scale) -> torch.Tensor:
    """A positive float32 that the type holds exactly."""
    dtype = getattr(torch, name)
    return scale.clamp(_TINY[name], torch.finfo(dtype).max).to(dtype).float()


@cache
def _magnitudes(element: Element) -> torch.Tensor:
    """The finite values of the codes without a sign, float32, in the order of the codes, which is their own."""
    exponents, mantissas = int(element[1]), int(element[3])
    codes = torch.arange(2 ** (exponents + mantissas) - _SPECIAL.get(element, 0))
    exponent, fraction = codes >> mantissas, (codes & (2**mantissas - 1)).float()
    normal = exponent > 0
    power = exponent.clamp(min=1) - (2 ** (exponents - 1) - 1) - mantissas
    return torch.ldexp(fraction + normal * 2.0**mantissas, power)


@cache
def _elements(element: Element) -> torch.Tensor:
    """The value of every code, float32 [2^bits]; those that are no finite number are 0, and no weight becomes them."""
    magnitudes = _magnitudes(element)
    values = torch.zeros(2, 2 ** (int(element[1]) + int(element[3])))
    values[0, : len(magnitudes)], values[1, : len(magnitudes)] = magnitudes, -magnitudes
    return values.flatten()


def _nearest(values: torch.Tensor, element: Element) -> torch.Tensor:
    """The codes of the elements that are nearest, uint8; of two equally near the even one, beyond the last the last."""
    magnitudes = _magnitudes(element).to(values.device)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    below = torch.bucketize(values.abs(), middles)
    above = torch.bucketize(values.abs(), middles, right=True)  # the next one where the value is in the middle
    code = torch.where(below % 2 == 0, below, above)
    sign = 2 ** (int(element[1]) + int(element[3]))
    return torch.where(torch.signbit(values), code + sign, code).to(torch.uint8)


def row_bytes(count: int, bits: int) -> int:
    """Bytes of a row of so many packed codes."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes 0..2^bits - 1 [out, in] as uint8 [out, ceil(in * bits / 8)].

    Bits follow each other from a byte's lowest: of two codes of 4 bits the low nibble is the even input's.
    """
    whole = 8 // gcd(8, bits)  # codes that fill whole bytes
    padded = pad(codes.long(), (0, -codes.shape[1] % whole)).view(len(codes), -1, whole)  # [out, words, whole]
    words = torch.zeros_like(padded[..., 0])  # [out, words]
    for index in range(whole):
        words |= padded[..., index] << index * bits
    octets = torch.stack([words >> shift & 255 for shift in range(0, whole * bits, 8)], 2).to(torch.uint8)
    return octets.flatten(1)[:, : row_bytes(codes.shape[1], bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, inputs: int) -> torch.Tensor:
    """What ``pack`` was given, uint8 [out, in]."""
    whole = 8 // gcd(8, bits)
    count = whole * bits // 8  # bytes of as many codes
    padded = pad(packed.long(), (0, -packed.shape[1] % count)).view(len(packed), -1, count)  # [out, words, count]
    words = torch.zeros_like(padded[..., 0])  # [out, words]
    for index in range(count):
        words |= padded[..., index] << index * 8
    codes = torch.stack([words >> index * bits & (2**bits - 1) for index in range(whole)], 2).to(torch.uint8)
    return codes.flatten(1)[:, :inputs].contiguous()
