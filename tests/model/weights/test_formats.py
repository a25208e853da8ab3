"""A number format rounds to nearest as its formula says, packs without loss, and counts the bytes that it packs."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from harness.core.errors import MethodError
from harness.model.weights.formats import NumberFormat, Quantized, pack, quantize, rounded_rows, unpack

INTEGERS = [
    NumberFormat(bits, group, symmetric, scale=scale)
    for bits in range(2, 9)
    for group, symmetric, scale in ((32, False, "float16"), (16, True, "float16"), (None, True, "float32"))
]
FLOATS = [
    NumberFormat(8, element="e4m3"),
    NumberFormat(8, 32, element="e5m2", scale="rceil"),
    NumberFormat(4, 32, element="e2m1", scale="floor"),
    NumberFormat(6, 32, element="e2m3", scale="rceil"),
    NumberFormat(6, 32, element="e3m2", scale="floor"),
    NumberFormat(8, 32, scale="floor"),
    NumberFormat(4, 32, scale="rceil"),
    NumberFormat(4, 16, element="e2m1", scale="e4m3"),
]
EVERY = [*INTEGERS, *FLOATS]


def label(number: NumberFormat) -> str:
    return f"{number.label}, {number.scale}"


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(12, 96, generator=torch.Generator().manual_seed(0))


def error(weight: torch.Tensor, number: NumberFormat) -> float:
    return float((quantize(weight, number).dequantized() - weight).norm() / weight.norm())


def by_hand(weight: torch.Tensor, number: NumberFormat) -> np.ndarray:
    """The formula of round to nearest on integers, group by group in double precision."""
    rounded = np.empty(weight.shape)
    group = number.group or weight.shape[1]
    for row, values in enumerate(weight.double().numpy()):
        for start in range(0, len(values), group):
            w = values[start : start + group]
            if number.symmetric:
                least, most = -(2 ** (number.bits - 1) - 1), 2 ** (number.bits - 1) - 1
                scale, zero = np.abs(w).max() / most, 0
            else:
                least, most = 0, 2**number.bits - 1
                scale = (max(w.max(), 0) - min(w.min(), 0)) / most
                scale = float(np.dtype(number.scale).type(scale))
                zero = np.clip(np.rint(-min(w.min(), 0) / scale), least, most)
            scale = float(np.dtype(number.scale).type(scale))
            rounded[row, start : start + group] = (np.clip(np.rint(w / scale) + zero, least, most) - zero) * scale
    return rounded


@pytest.mark.parametrize("number", INTEGERS, ids=label)
def test_integers_are_those_of_the_formula(number: NumberFormat, weight: torch.Tensor) -> None:
    assert np.allclose(quantize(weight, number).dequantized().numpy(), by_hand(weight, number), rtol=1e-5, atol=1e-6)


def test_int8_by_rows_is_torchs_own(weight: torch.Tensor) -> None:
    quantized = quantize(weight, NumberFormat(8))
    zeros = torch.zeros(12, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, quantized.scale[:, 0], zeros, 0, -127, 127)
    assert torch.allclose(quantized.dequantized(), expected, rtol=1e-6)


@pytest.mark.parametrize(("element", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_floats_of_eight_bits_are_torchs_own(element: str, dtype: torch.dtype) -> None:
    number = NumberFormat(8, element=element)  # type: ignore[arg-type]
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).float()
    values = values[values.isfinite()].unique()
    middles = (values[1:] + values[:-1]) / 2  # of which torch takes the even neighbour
    near = torch.cat([values, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), torch.tensor([-0.0])])
    near = torch.cat([near, torch.tensor([number.largest])])[None]  # so that the scale is 1
    quantized = quantize(near, number)
    assert quantized.scale.item() == 1
    assert torch.equal(quantized.codes.view(dtype).float(), near.to(dtype).float())
    assert torch.equal(quantized.dequantized(), near.to(dtype).float())


@pytest.mark.parametrize(
    ("scale", "expected", "shared"),
    [("floor", [0, -0.5, 1.5, 3, -6, 0, 4, 6], 1), ("rceil", [0, -1, 1, 3, -6, 0, 4, 8], 2)],
)
def test_a_block_of_mxfp4_is_that_of_the_specification(scale: str, expected: list[float], shared: float) -> None:
    block = torch.tensor([[0.1, -0.7, 1.3, 2.9, -5.2, 0.02, 3.5, 7.9]])
    quantized = quantize(block, NumberFormat(4, 8, element="e2m1", scale=scale))  # type: ignore[arg-type]
    assert quantized.dequantized().tolist() == [expected]
    assert quantized.scale.item() == shared


@pytest.mark.parametrize(("element", "largest"), [("e2m1", 6), ("e2m3", 7.5), ("e3m2", 28), ("e4m3", 448)])
def test_one_rule_for_a_power_of_two_saturates_and_the_other_never_does(element: str, largest: float) -> None:
    number = NumberFormat(1 + int(element[1]) + int(element[3]), 2, element=element, scale="floor")  # type: ignore[arg-type]
    values = torch.arange(1.0, 4.0, 1 / 64)[:, None] * torch.tensor([[1.0, -1.0]])
    highest = 2.0 ** math.floor(math.log2(largest))
    for rule in ("floor", "rceil"):
        quantized = quantize(values, dataclasses.replace(number, scale=rule))
        for most, scale in zip(values[:, 0].tolist(), quantized.scale[:, 0].tolist(), strict=True):
            power = math.floor(math.log2(most)) - math.log2(highest) if rule == "floor" else None
            assert scale == 2.0 ** (math.ceil(math.log2(most / largest)) if power is None else power)
    saturated = quantize(values, number).dequantized().abs().amax() / 2
    assert saturated == largest / highest  # of 2 to 4, all that is beyond this becomes it


def test_the_integers_of_the_specification_have_six_bits_after_the_point() -> None:
    values = torch.tensor([[1.99, -1.3, 0.5, 1 / 64]])
    quantized = quantize(values, NumberFormat(8, 4, scale="floor"))
    assert quantized.scale.item() == 1 / 64
    assert quantized.codes.tolist() == [[127, -83, 32, 1]]


def nvfp4_by_hand(weight: torch.Tensor) -> torch.Tensor:
    """NVFP4 block by block: a scale in E4M3 times a float32 that all share."""
    elements = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    second = float(weight.abs().max()) / (448 * 6)
    rounded = weight.clone()
    for block in rounded.view(-1, 16):
        scale = float(torch.tensor(float(block.abs().max()) / 6 / second).to(torch.float8_e4m3fn)) * second
        for index, value in enumerate(block.tolist()):
            distances = (elements * scale - abs(value)).abs()
            block[index] = math.copysign(float(elements[distances.argmin()]) * scale, value)
    return rounded


def test_nvfp4_has_two_scales(weight: torch.Tensor) -> None:
    number = NumberFormat(4, 16, element="e2m1", scale="e4m3")
    weight[2] *= 300
    quantized = quantize(weight, number)
    assert torch.allclose(quantized.dequantized(), nvfp4_by_hand(weight), rtol=1e-5)
    second = float(weight.abs().max()) / (448 * 6)
    codes = (quantized.scale / second).to(torch.float8_e4m3fn).float()
    assert torch.allclose(quantized.scale, codes * second, rtol=1e-6)
    assert float(codes.max()) == 448
    assert number.nbytes(12, 96) == 12 * 96 // 2 + 12 * 6 + 4


def test_a_row_of_activations_is_rounded_whatever_the_others_are(weight: torch.Tensor) -> None:
    for number in FLOATS:
        alone = torch.cat([rounded_rows(row[None], number) for row in weight])
        weight[5] *= 1000
        together = rounded_rows(weight, number)
        weight[5] /= 1000
        others = torch.arange(12) != 5
        assert torch.equal(together[others], alone[others])


@pytest.mark.parametrize("number", EVERY, ids=label)
def test_what_is_packed_comes_back_in_the_bytes_that_are_counted(number: NumberFormat, weight: torch.Tensor) -> None:
    quantized = quantize(weight, number)
    packed = quantized.packed()
    again = Quantized.of_packed(number, packed, 96, quantized.scale, quantized.zero)
    assert torch.equal(again.codes, quantized.codes)
    assert (
        again.codes.dtype
        == quantized.codes.dtype
        == (torch.int8 if number.element == "int" and number.symmetric else torch.uint8)
    )
    scale = {"float32": 4, "float16": 2}.get(number.scale, 1) * quantized.scale.numel()
    scale += 4 if number.scale == "e4m3" else 0  # the second one
    zeros = 0 if quantized.zero is None else pack(quantized.zero, number.bits).nbytes
    assert quantized.nbytes == number.nbytes(12, 96) == packed.nbytes + scale + zeros
    assert packed.nbytes == 12 * 96 * number.bits // 8


def test_bytes_are_those_of_a_hand_count() -> None:
    assert NumberFormat(4, 128, False, scale="float16").nbytes(512, 1024) == 512 * (1024 // 2 + 8 * 2 + 8 // 2)
    assert NumberFormat(8).nbytes(512, 1024) == 512 * (1024 + 4)
    assert NumberFormat(4, 32, element="e2m1", scale="floor").nbytes(1, 1024) * 8 / 1024 == 4.25  # MXFP4
    assert NumberFormat(6, 32, element="e2m3", scale="floor").nbytes(1, 1024) * 8 / 1024 == 6.25  # MXFP6
    assert NumberFormat(8, 32, element="e4m3", scale="floor").nbytes(1, 1024) * 8 / 1024 == 8.25  # MXFP8
    assert NumberFormat(8, 32, scale="floor").nbytes(1, 1024) * 8 / 1024 == 8.25  # MXINT8
    nvfp4 = NumberFormat(4, 16, element="e2m1", scale="e4m3")
    assert nvfp4.nbytes(64, 1024) == 64 * 1024 * 4.5 / 8 + 4


@pytest.mark.parametrize(("block", "times"), [(64, 7.757), (1331, 7.988)])
def test_the_size_of_blockwise_compression_is_that_of_its_paper_in_large_blocks(block: int, times: float) -> None:
    number = NumberFormat(4, block, scale="floor")
    assert 4 * 1024 * block / number.nbytes(1, 1024 * block) == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("inputs", [1, 7, 8, 96])
def test_codes_of_any_width_are_packed(bits: int, inputs: int) -> None:
    codes = torch.randint(2**bits, (3, inputs), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, math.ceil(inputs * bits / 8))
    assert torch.equal(unpack(packed, bits, inputs), codes)


def test_the_low_nibble_is_the_even_inputs() -> None:
    assert pack(torch.tensor([[1, 2, 15, 0]]), 4).tolist() == [[0x21, 0x0F]]
    assert quantize(torch.tensor([[7.0, -7.0]]), NumberFormat(4)).packed().tolist() == [[0x1F]]  # 7 + 8, -7 + 8


@pytest.mark.parametrize("number", EVERY, ids=label)
def test_a_weight_on_the_grid_comes_back(number: NumberFormat, weight: torch.Tensor) -> None:
    codes = torch.randint(0, 2**number.bits, weight.shape, generator=torch.Generator().manual_seed(1))
    grouped = codes.view(12, -1, number.group or 96)
    if number.element == "int" and number.symmetric:
        grouped = (grouped - 2 ** (number.bits - 1)).clamp(min=1 - 2 ** (number.bits - 1))
    grouped[..., 0], grouped[..., 1] = (0, 2**number.bits - 1) if not number.symmetric else (number.largest, 0)
    if number.element != "int":
        grouped = Quantized(number, codes.to(torch.uint8), torch.ones(12, 1)).dequantized().view(grouped.shape)
        grouped[..., 0] = number.largest
    if number.scale == "e4m3":  # of which every block then has the same scale
        grouped = grouped * 448
    zero = 3 if not number.symmetric else 0
    exact = (grouped - zero).float().flatten(1) * 2.0**-5
    assert torch.equal(quantize(exact, number).dequantized(), exact)


def test_the_error_falls_with_bits_and_with_smaller_groups() -> None:
    weight = torch.randn(32, 512, generator=torch.Generator().manual_seed(2))
    for symmetric in (True, False):
        by_bits = [error(weight, NumberFormat(bits, 128, symmetric, scale="float16")) for bits in range(2, 9)]
        assert by_bits == sorted(by_bits, reverse=True)
        for bits in (3, 4, 8):
            groups = (16, 32, 64, 128, 256, 512)
            by_group = [error(weight, NumberFormat(bits, group, symmetric, scale="float16")) for group in groups]
            assert by_group == sorted(by_group)
    assert 0.005 < error(weight, NumberFormat(8)) < 0.012
    assert 0.09 < error(weight, NumberFormat(4, 128, False, scale="float16")) < 0.11


@pytest.mark.parametrize("number", EVERY, ids=label)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_dead_and_constant_rows_and_outliers_stay_finite(
    number: NumberFormat, scale: float, weight: torch.Tensor
) -> None:
    weight[0], weight[1], weight[2], weight[3] = 0, 0.75, -0.75, weight[3].abs()
    weight[4, 50] = 3e38 / max(scale, 1)
    rounded = quantize(weight * scale, number).dequantized()
    assert rounded.isfinite().all()
    assert not rounded[0].any()
    if scale == 1 and number.element == "int" and number.scale in ("float32", "float16"):
        assert torch.allclose(rounded[1:3], weight[1:3], rtol=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(broken: float, weight: torch.Tensor) -> None:
    weight[3, 4] = broken
    with pytest.raises(MethodError, match="not finite"):
        quantize(weight, NumberFormat(4, 32))


def test_the_weight_may_be_a_view_of_another_type(weight: torch.Tensor) -> None:
    number, turned = NumberFormat(4, 32, False, scale="float16"), weight.bfloat16().T.contiguous()
    assert torch.equal(quantize(turned.T, number).codes, quantize(weight.bfloat16(), number).codes)


@pytest.mark.parametrize(
    ("widths", "group", "says"),
    [
        ([576, 1536], 128, "group=128 does not divide the 576 inputs of a linear layer: give group=64 or group=32"),
        ([256, 100], 64, "does not divide the 100 inputs of a linear layer: give group=4 or group=2 or group=1"),
        ([96], 64, "give group=32 or group=16 or group=8"),
    ],
)
def test_a_group_that_does_not_divide_is_refused_with_what_would(widths: list[int], group: int, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        NumberFormat(4, group).check_inputs(widths)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bits": 1}, "2 to 8 bits, not 1"),
        ({"bits": 9}, "2 to 8 bits, not 9"),
        ({"group": 0}, "at least one input"),
        ({"bits": 4, "element": "e4m3"}, "e4m3 has 8 bits"),
        ({"symmetric": False, "element": "e4m3"}, "no zero points"),
        ({"symmetric": False, "scale": "floor"}, "no zero points"),
    ],
)
def test_what_is_no_format_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        NumberFormat(**fields)  # type: ignore[arg-type]
