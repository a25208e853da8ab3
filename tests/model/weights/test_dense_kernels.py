"""Products of bytes and of packed weights, on every instruction set that this processor has, against whole numbers."""

import pytest
import torch

from harness.measure.audit import count_flops
from harness.model.weights import dense_kernels, weight_only
from harness.model.weights.computations import Layer
from harness.model.weights.dense_kernels import SETS, pack_bytes, pack_codes, why_not
from harness.model.weights.formats import NumberFormat, Quantized, quantize
from harness.model.weights.int8 import computations
from harness.model.weights.packed_linear import DenseOverValues

TOKENS = (1, 2, 3, 8, 9, 130)
SHAPES = [(64, 64), (50, 131), (1, 1), (35, 520)]
SET_NAMES = {"plain": "plain C", "avx2": "avx2", "avx512": "avx512", "avx512-vnni": "avx512-vnni", "amx": "avx512-vnni"}
FORMATS = [
    NumberFormat(8),
    NumberFormat(8, symmetric=False),
    NumberFormat(8, 40, symmetric=False, scale="float16"),
    NumberFormat(4),
    NumberFormat(4, 8, symmetric=False, scale="float16"),
    NumberFormat(4, 40, scale="float16"),
    NumberFormat(4, 520, symmetric=False),
]


@pytest.fixture
def level(isa):
    """The best set's place, of those that may be used."""
    return SETS[SET_NAMES[isa]]


def integers(*shape, seed=0, most=127):
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))


def by_bytes(x, weight, level, bias=None, *, scale=None, whole=True):
    scale = torch.ones(len(weight)) if scale is None else scale
    return torch.ops.harness.int8_linear(x, pack_bytes(weight, level), scale, bias, level, whole)


def by_codes(x, weight, level, operator="packed_linear"):
    group = weight.codes.shape[1] // weight.scale.shape[1]
    return getattr(torch.ops.harness, operator)(x, *pack_codes(weight, level), group, level)


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_sums_of_bytes_are_exact(out, inputs, level):
    weight, x = integers(out, inputs), integers(max(TOKENS), inputs, seed=1)
    weight[0], x[0] = 127, -127  # the largest sums, of either sign
    weight[-1], x[-1] = -127, 127
    bias = integers(out, seed=2)
    exact = x @ weight.T
    for tokens in TOKENS:
        for added in (None, bias):
            y = by_bytes(x[:tokens].float(), weight.to(torch.int8), level, None if added is None else added.float())
            assert torch.equal(y.long(), exact[:tokens] + (0 if added is None else added)), tokens


def test_activations_are_rounded_by_token(level):
    generator = torch.Generator().manual_seed(0)
    weight, x = integers(35, 300), torch.randn(130, 300, generator=generator)
    scale, bias = torch.rand(35, generator=generator), torch.randn(35, generator=generator)
    x[4] *= 1e20
    x[5] *= 1e-20
    x[6] = 0
    largest = x.abs().amax(1, keepdim=True).clamp(min=1e-30)
    rounded = (x * (127 / largest)).round().double()
    expected = rounded @ weight.double().T * scale * largest / 127 + bias
    y = by_bytes(x, weight.to(torch.int8), level, bias, scale=scale, whole=False)
    alone = torch.cat([by_bytes(row[None], weight.to(torch.int8), level, bias, scale=scale, whole=False) for row in x])
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(y, alone)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [8, 40, 128, 384])
def test_sums_of_codes_are_exact_where_activations_are_whole(bits, group, level):
    """Every chunk's largest is 32,767, so that its step is one; all sums fit the digits of a float32."""
    x = integers(max(TOKENS), 3 * group, seed=1, most=9)
    largest = torch.arange(0, 3 * group, min(group, 128))  # one input of each chunk
    x[:, largest] = 32767 * (1 - 2 * (integers(max(TOKENS), len(largest)) > 0).long())
    for signed in (True, False):
        half = 2 ** (bits - 1)
        middle = 0 if signed else half - 1
        codes = integers(21, 3 * group, most=half - 1) + middle
        codes[:, largest] = integers(21, len(largest), seed=4, most=7) + middle
        zero = None if signed else integers(21, 3, seed=3, most=7) + middle
        kept = codes.to(torch.int8 if signed else torch.uint8)
        weight = Quantized(
            NumberFormat(bits, group, signed), kept, torch.ones(21, 3), None if zero is None else zero.to(torch.uint8)
        )
        exact = x @ weight.dequantized().long().T
        assert exact.abs().max() < 2**24
        for tokens in TOKENS:
            assert torch.equal(by_codes(x[:tokens].float(), weight, level).long(), exact[:tokens]), tokens


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: number.label)
@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_packed_weights_are_the_dense_product(number, out, inputs, level):
    if number.group and inputs % number.group:
        pytest.skip(f"groups of {number.group} do not divide {inputs}")
    generator = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(out, inputs, generator=generator), number)
    x = torch.randn(max(TOKENS), inputs, generator=generator)
    expected = x.double() @ weight.dequantized().double().T
    for tokens in TOKENS:
        y = by_codes(x[:tokens], weight, level)
        assert (y - expected[:tokens]).norm() < 5e-5 * expected[:tokens].norm()
        floats = by_codes(x[:tokens], weight, level, "unpacked_linear")
        assert (floats - expected[:tokens]).norm() < 1e-6 * expected[:tokens].norm()


def test_panels_of_floats_are_as_wide_as_fits(level, monkeypatch):
    """Of four groups of outputs and a part of one, in panels of one group, of three, and of all."""
    generator = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(70, 24, generator=generator), NumberFormat(4, 8, symmetric=False))
    x = torch.randn(5, 24, generator=generator)
    expected = x.double() @ weight.dequantized().double().T
    for groups in (0, 1, 3, 99):
        monkeypatch.setattr(dense_kernels, "_PANEL", 4 * 24 * groups * (16 if level > 1 else 8))
        y, flops = count_flops(lambda: by_codes(x, weight, level, "unpacked_linear"))
        assert torch.allclose(y.double(), expected, atol=1e-5)
        assert flops == 2 * 5 * 24 * 70


def test_a_massive_channel_costs_the_others_nothing(level):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 512, generator=generator)
    values[:, :128] = 0  # what meets the massive channel and its neighbours
    weight = quantize(values, NumberFormat(4, 128, symmetric=False))
    x = torch.randn(1, 512, generator=generator)
    x[0, 7] = 1e6
    expected = x.double() @ weight.dequantized().double().T
    assert (by_codes(x, weight, level) - expected).norm() < 5e-5 * expected.norm()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(broken, level):
    weight = quantize(torch.randn(20, 136), NumberFormat(4, 8))
    for tokens in (3, 20):
        x = torch.randn(tokens, 136)
        x[1, 131] = broken
        for y in (by_codes(x, weight, level), by_bytes(x, weight.codes, level, whole=False)):
            assert not torch.isfinite(y[1]).any()
            assert torch.isfinite(y[2]).all()
            assert torch.isfinite(y[0]).all()


def test_threads_places_and_no_tokens_change_nothing(level):
    weight = quantize(torch.randn(150, 200), NumberFormat(4, 40, symmetric=False))
    x = torch.randn(130, 200)
    threads = torch.get_num_threads()
    expected = by_codes(x, weight, level), by_bytes(x, weight.codes.to(torch.int8), level, whole=False)

    def moved(tensor):  # to where no vector is aligned
        space = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        return space[1:].view(tensor.shape).copy_(tensor)

    codes, scale, zero, outputs = pack_codes(weight, level)
    packed, ones = pack_bytes(weight.codes.to(torch.int8), level), torch.ones(150)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = torch.ops.harness.packed_linear(moved(x), moved(codes), moved(scale), moved(zero), outputs, 40, level)
            assert torch.equal(y, expected[0])
            y = torch.ops.harness.int8_linear(moved(x), moved(packed), moved(ones), None, level, False)
            assert torch.equal(y, expected[1])
    finally:
        torch.set_num_threads(threads)
    assert by_codes(x[:0], weight, level).shape == by_bytes(x[:0], weight.codes, level).shape == (0, 150)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_take_the_best_set(isa, dtype):
    name, shape = SET_NAMES[isa], Layer(40, 256, str(dtype).removeprefix("torch."))
    number = NumberFormat(4, 128, symmetric=False, scale="float16")
    kernels = weight_only.computations(shape, "cpu", number).kernels
    own = [kernel for kernel in kernels if kernel.why_not is None and not kernel.name.startswith("torch")]
    assert [kernel.name for kernel in own] == [f"{name}, int4 g128", f"{name} unpacked, int4 g128"]
    assert computations(shape, "cpu").able[0].name == f"int8 {name}"
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(40, 256, generator=generator).to(dtype), torch.randn(40, generator=generator).to(dtype)
    layer = own[0].make(weight, bias)
    dense = DenseOverValues(quantize(weight, number), bias.float(), torch.float32)
    x = torch.randn(2, 3, 256, generator=generator).to(dtype)
    y, flops = count_flops(lambda: layer(x))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), dense(x.float()), rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.2)
    assert flops == 2 * 6 * 40 * 256
    lanes = 16 if name.startswith("avx512") else 8
    rows = -(-40 // (2 * lanes)) * 2 * lanes  # filled up
    assert layer.weight_bytes == rows * 256 // 2 + rows * 2 * (4 + 1)  # codes, scales as float32, zero points


def test_a_set_that_a_better_one_replaces_says_so(kernel_sets, isa, monkeypatch):
    for name, place in SETS.items():
        reason = why_not(name)
        if place == SETS[SET_NAMES[isa]]:
            assert reason is None
        elif place > SETS[SET_NAMES[isa]]:
            assert "leaves" in reason or "this processor has no" in reason
        else:
            assert reason == f"the kernels for {SET_NAMES[isa]} run here, and do the same faster"
    monkeypatch.setattr(dense_kernels, "_load", lambda limit: ("no C compiler: install gcc",) * 5)
    assert {why_not(name) for name in SETS} == {"no C compiler: install gcc"}


def test_groups_that_fill_no_lane_are_refused_in_a_sentence(kernel_sets):
    number = NumberFormat(4, 12)
    kernels = weight_only.computations(Layer(40, 48, "float32"), "cpu", number).kernels
    assert any("takes groups of whole eights of inputs, and the format is" in (each.why_not or "") for each in kernels)
    assert "cpu" not in weight_only.computations(Layer(40, 48, "float32"), "cuda:0", number).dense.name


def test_kernels_that_differ_are_refused(kernel_sets, monkeypatch):
    right = dense_kernels._packed
    monkeypatch.setattr(dense_kernels, "_packed", lambda *arguments: right(*arguments) + 1)
    with pytest.raises(dense_kernels.KernelError, match=r"plain kernel for int8 weights differs .* is not used"):
        dense_kernels.check(0)
