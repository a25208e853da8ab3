"""The layout of compressed-tensors: how linear layers of few bits lie in safetensors, and what its configuration says.

    pack-quantized   weight_packed int32 [out, in bits / 32], codes one after another from the lowest bit; weight_shape;
                     where there are zero points, weight_zero_point int32 [out bits / 32, groups], packed by outputs
    int-quantized    weight int8 [out, in], with activations rounded to int8 by token
    float-quantized  weight float8_e4m3fn [out, in], with activations rounded to it by token

Each has weight_scale [out, groups]. Stored is q + 2^(bits - 1) of the signed code q that stands for (q - z) s, the bits
that ``Quantized.packed`` has too. Source: the package compressed-tensors, 0.20.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.nn.functional import pad

from harness.core.errors import MethodError, ModelError
from harness.model.weights.formats import NumberFormat, Quantized, pack, unpack

FORMATS: Final = ("pack-quantized", "int-quantized", "float-quantized")
_E4M3: Final = NumberFormat(8, element="e4m3")
_WORD: Final = 4  # bytes


@dataclass(frozen=True)
class Scheme:
    """How a linear layer is rounded.

    Attributes:
        number: of its weight.
        activations: that each token's activations are rounded to as they come; None where they stay.
    """

    number: NumberFormat
    activations: NumberFormat | None = None

    @property
    def format(self) -> str:
        """What compressed-tensors calls it.

        Raises:
            MethodError: it has no layout for that.
        """
        number, activations = self.number, self.activations
        whole = number.element == "int" and number.scale in ("float32", "float16") and number.zero == "code"
        if whole and activations is None:
            return "pack-quantized"
        if number == activations == NumberFormat(8):
            return "int-quantized"
        if number == activations == _E4M3:
            return "float-quantized"
        beside = "" if activations is None else f" with activations in {activations.label}"
        raise MethodError(
            f"weights in {number.label}{beside} have no place in the layouts of compressed-tensors that are written "
            f"here ({', '.join(FORMATS)})"
        )

    def group(self, targets: list[str]) -> dict[str, Any]:
        """One of the ``config_groups``.

        Args:
            targets: names of the linear layers, or their class.
        """
        inputs = (
            None if self.activations is None else _stated(self.activations) | {"strategy": "token", "dynamic": True}
        )
        return {
            "targets": targets,
            "weights": _stated(self.number),
            "input_activations": inputs,
            "output_activations": None,
            "format": self.format,
        }

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> "Scheme":
        """What one of the ``config_groups`` says.

        Raises:
            ModelError: something that is not read here.
        """
        weights, inputs = group["weights"], group.get("input_activations")
        if inputs is not None and not (inputs.get("dynamic") is True and inputs.get("strategy") == "token"):
            raise ModelError("its activations have scales that were chosen beforehand, or one for several tokens")
        return cls(_number(weights), None if inputs is None else _number(inputs | {"strategy": "channel"}))


def _stated(number: NumberFormat) -> dict[str, Any]:
    return {
        "num_bits": number.bits,
        "type": "int" if number.element == "int" else "float",
        "symmetric": number.symmetric,
        "strategy": "channel" if number.group is None else "group",
        "group_size": number.group,
        "dynamic": False,
    }


def _number(stated: Mapping[str, Any]) -> NumberFormat:
    kind, bits, strategy = stated.get("type", "int"), stated.get("num_bits", 8), stated.get("strategy")
    if kind == "float" and bits == 8 and strategy in ("channel", "tensor"):
        return _E4M3
    if kind != "int" or strategy not in ("channel", "group", "tensor") or bits not in range(2, 9):
        raise ModelError(f"its weights are of type {kind} in {bits} bits by {strategy}")
    group = stated.get("group_size") if strategy == "group" else None
    return NumberFormat(bits, group, stated.get("symmetric", True))


def tensors(name: str, weight: Quantized, scheme: Scheme) -> dict[str, torch.Tensor]:
    """What is stored of a linear layer's weight, by name."""
    layout, number = scheme.format, weight.format
    kept = {"weight_scale": weight.scale.to(getattr(torch, number.scale))}
    if layout == "int-quantized":
        kept["weight"] = weight.codes
    elif layout == "float-quantized":
        kept["weight"] = weight.codes.view(torch.float8_e4m3fn)
    else:
        kept["weight_packed"] = _words(weight.packed())
        kept["weight_shape"] = torch.tensor(weight.codes.shape)
        if weight.zero is not None:
            kept["weight_zero_point"] = _words(pack(weight.zero.T, number.bits)).T
    return {f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in kept.items()}


def weight_of(stored: Mapping[str, torch.Tensor], scheme: Scheme) -> Quantized:
    """The weight that ``tensors`` stored; keys are the last parts of the names.

    Raises:
        ModelError: a tensor is missing, or does not fit the others.
    """
    number = scheme.number
    try:
        scale, zero = stored["weight_scale"], stored.get("weight_zero_point")
        if scale.dtype == torch.float16:
            number = replace(number, scale="float16")
        if "weight_packed" in stored:
            out, inputs = (int(size) for size in stored["weight_shape"])
            groups = number.groups(inputs)
            if zero is not None:
                zero = unpack(_bytes(zero.T), number.bits, out).T.contiguous()  # [out, groups]
            codes = unpack(_bytes(stored["weight_packed"]), number.bits, inputs)
            if number.symmetric:
                codes = (codes.short() - 2 ** (number.bits - 1)).to(torch.int8)
        else:
            codes = stored["weight"]
            out, groups = len(codes), number.groups(codes.shape[1])
            codes = codes.view(torch.uint8) if number.element != "int" else codes
            if not number.symmetric:
                codes, zero = _unsigned(codes), _unsigned(stored["weight_zero_point"])
        scale = scale.float().reshape(-1, groups).expand(out, groups).contiguous()
        if len(codes) != out or (not number.symmetric and (zero is None or zero.shape != scale.shape)):
            raise ModelError("its tensors do not fit each other")
        return Quantized(number, codes, scale, None if number.symmetric else zero)
    except (KeyError, RuntimeError, ValueError, MethodError) as error:
        raise ModelError(f"its tensors do not fit each other ({error})") from error


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    return (codes.short() + 128).to(torch.uint8)


def _words(packed: torch.Tensor) -> torch.Tensor:
    """Bytes [rows, bytes] as whole words, int32 [rows, words]."""
    return pad(packed, (0, -packed.shape[1] % _WORD)).view(torch.int32)


def _bytes(words: torch.Tensor) -> torch.Tensor:
    return words.contiguous().view(torch.uint8)
