"""The kernels in Triton, interpreted on the CPU, agree with the product in double precision over the same numbers."""

import pytest
import torch
from torch.nn.functional import linear

from harness.measure.audit import count_flops
from harness.model.weights import cuda, int8, weight_only
from harness.model.weights.by_token import scaled
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.packed_linear import PackedLinear
from harness.model.weights.packed_products import PRODUCTS
from harness.model.weights.triton_kernels import block_linear, launch, products
from harness.model.weights.triton_kernels.block_linear import FloatBlocks, Int8Blocks

FORMATS = {
    "int8": NumberFormat(8),
    "int8 in groups": NumberFormat(8, 32),
    "uint8": NumberFormat(8, symmetric=False),
    "int4": NumberFormat(4, 32, symmetric=False, scale="float16"),
    "int4, wide groups": NumberFormat(4, 96, symmetric=False, scale="float16"),
    "int4, symmetric": NumberFormat(4, 64),
    "int4 by rows": NumberFormat(4),
    "e4m3": NumberFormat(8, element="e4m3"),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""Of the largest output; the interpreter cuts what it gives in bfloat16 off."""


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Triton's interpreter, with products of tiles in bfloat16."""
    from triton.runtime import interpreter as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.InterpreterBuilder, "create_dot", in_float(module))
        patch.setattr(module.InterpreterBuilder, "cast_impl", by_float(module))
        yield


def in_float(module):
    """The interpreter's product of tiles, with the bits of bfloat16 read as the numbers that they are."""
    import triton.language as tl

    dot = module.InterpreterBuilder.create_dot

    def widened(builder, a, b, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (builder.cast_impl(each, tl.float32) for each in (a, b))
        return dot(builder, a, b, *rest)

    return widened


def by_float(module):
    """The interpreter's casts, with those to bfloat16 from what is no float32 made through one."""
    import triton.language as tl

    cast = module.InterpreterBuilder.cast_impl

    def through(builder, source, kind):
        if kind.scalar == tl.bfloat16 and source.dtype.scalar != tl.float32:
            source = cast(builder, source, tl.float32)
        return cast(builder, source, kind)

    return through


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def number_of(form):
    return next(each for each in PRODUCTS if each.name == "triton" and each.takes(form))


@pytest.mark.parametrize("name", FORMATS)
def test_a_product_is_that_of_the_numbers_that_codes_stand_for(name):
    form = FORMATS[name]
    out, inputs = 40, 192 if form.group else 150  # no whole tile of outputs; without groups no whole span of inputs
    weight = quantize(draw(out, inputs), form)
    kernel = number_of(form)
    many = 130 if name in ("int8", "int4") else 17
    for dtype, counts in ((torch.float32, (1, 3, many)), (torch.bfloat16, (1, 17)), (torch.float16, (1, 3))):
        layer = PackedLinear(weight, draw(out, seed=1).to(dtype), dtype, kernel)
        for tokens in counts:
            x = draw(tokens, inputs, seed=tokens).to(dtype)
            y = layer(x)
            expected = linear(x.double(), weight.dequantized().double(), layer.bias.double())
            assert y.dtype == dtype
            assert (y - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max(), (dtype, tokens)


@pytest.mark.parametrize("rows", [16, 64])
def test_a_product_of_blocks_is_the_dense_one(rows):
    out, inputs = 100, 90
    weight = draw(out, inputs) * (draw(-(-out // rows), inputs, seed=1) > 0.5).repeat_interleave(rows, 0)[:out]
    bias = draw(out, seed=2)
    layers = {"int8": Int8Blocks(weight, bias, rows), "fp32": FloatBlocks(weight, bias, rows)}
    dense = {"int8": Int8Linear(weight, bias, None), "fp32": lambda x: linear(x, weight, bias)}
    for number, layer in layers.items():
        for tokens in (1, 3, 17, 130):
            x = draw(tokens, inputs, seed=tokens)
            assert torch.allclose(layer(x), dense[number](x), rtol=1e-4, atol=1e-4), (number, tokens)
    for dtype in (torch.bfloat16, torch.float16):
        layer, x = FloatBlocks(weight.to(dtype), bias.to(dtype), rows), draw(3, inputs).to(dtype)
        for tokens in (x, x[:1]):
            expected = linear(tokens.double(), weight.to(dtype).double(), bias.to(dtype).double())
            assert (layer(tokens) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_inputs_cut_into_parts_are_added(monkeypatch):
    """As on a card of so many multiprocessors."""
    monkeypatch.setattr(launch, "PROGRAMS", 40)
    assert launch.tile_cut(16, 3, 128, 0, 1, 4).parts == 2
    x, weight = draw(3, 2048), quantize(draw(16, 2048), NumberFormat(8))
    y = PackedLinear(weight, None, torch.float32, number_of(weight.format))(x)
    expected = linear(x.double(), weight.dequantized().double())
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    blocks = FloatBlocks(weight.dequantized()[:, :1024], None, 16)
    expected = linear(x[:, :1024].double(), weight.dequantized()[:, :1024].double())
    assert launch.block_cut(1, 16, 1024, 3, 1, 4).parts > 1 < launch.block_cut(1, 16, 1024, 1, 1, 4).parts
    for tokens in (3, 1):
        assert (blocks(x[:tokens, :1024]) - expected[:tokens]).abs().max() <= 1e-5 * expected.abs().max()


def test_int8_sums_are_exact():
    kernel = next(each for each in int8.PRODUCTS if each.name == "triton int8")
    assert int8.is_right(kernel, "cpu")
    x = torch.full((17, 80), 127, dtype=torch.int8)
    weight, scale = torch.full((40, 80), -127, dtype=torch.int8), torch.rand(40, generator=torch.Generator())
    for tokens in (1, 17):
        y = kernel.product(x[:tokens], kernel.pack(weight), scale)
        assert torch.equal(y, (-80 * 127.0**2 * scale).expand(tokens, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_are_rounded_as_by_torch(dtype):
    """To the last bit: ties, a massive one among small ones, tokens of zeros, and a row of several pieces."""
    x = torch.cat([draw(4, 5000), torch.arange(-2500, 2500)[None] / 2.0, torch.zeros(1, 5000)]).to(dtype)
    x[1, 7] = 3000.0
    codes, scale = products.rounded(x, 127)
    expected, of_token = scaled(x.float(), 127)
    assert torch.equal(codes, expected.round().to(torch.int8))
    assert torch.equal(scale, of_token)
    assert [each.shape for each in products.rounded(x.to("meta"), 127)] == [codes.shape, scale.shape]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none(value):
    x = draw(2, 40)
    x[1, 3] = value
    kernel = next(each for each in int8.PRODUCTS if each.name == "triton int8")
    y = Int8Linear(draw(24, 40), None, kernel)(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_a_layer_in_int8_is_that_of_torch():
    kernel = next(each for each in int8.PRODUCTS if each.name == "triton int8")
    weight, bias = draw(40, 96), draw(40, seed=1)
    for dtype, tokens in ((torch.float32, 1), (torch.float32, 17), (torch.bfloat16, 3)):
        x = draw(tokens, 96, seed=2).to(dtype)
        y = Int8Linear(weight.to(dtype), bias.to(dtype), kernel)(x)
        expected = Int8Linear(weight.to(dtype), bias.to(dtype), None)(x)
        assert y.dtype == dtype
        assert (y - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    _, flops = count_flops(lambda: Int8Linear(weight, bias, kernel)(draw(3, 96)))
    assert flops == 2 * 3 * 40 * 96


def test_all_are_right_where_they_run_and_counted(monkeypatch):
    """The trial that a card has to pass, and what the audit of a run counts."""
    monkeypatch.setattr(cuda, "why_not", lambda *_: None)
    layer = Layer(48, 64, "float32", 0.5, 16)
    ways = {
        "triton, int8": weight_only.computations(layer, "cpu", NumberFormat(8)),
        "triton, int4 g32": weight_only.computations(layer, "cpu", NumberFormat(4, 32, False, scale="float16")),
    }
    kernels = {name: each.named(name) for name, each in ways.items()} | {
        f"block-sparse {number} 16x1, triton": block_linear.computation(layer, "cpu", number)
        for number in ("fp32", "int8")
    }
    weight = draw(48, 64) * (draw(3, 64, seed=1) > 0).repeat_interleave(16, 0)
    for name, kernel in kernels.items():
        assert kernel is not None
        assert kernel.why_not is None
        made = kernel.make(weight, None)
        assert made.kernel == name
        for tokens in (1, 5):
            _, flops = count_flops(lambda made=made, tokens=tokens: made(torch.ones(tokens, 64)))
            assert flops == 2 * tokens * made.macs_per_token


def test_what_is_wrong_is_left_out_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(cuda, "why_not", lambda *_: None)
    monkeypatch.setattr(block_linear, "product", lambda x, *rest: x.new_zeros(len(x), 150))
    block_linear._fault.cache_clear()
    kernel = block_linear.computation(Layer(48, 64, "float32", 0.5, 64), "cpu", "fp32")
    assert "differs from the dense product" in kernel.why_not
    assert kernel.why_not.removeprefix("the kernel in Triton: ") in caplog.text
    block_linear._fault.cache_clear()


def test_no_tokens_give_none():
    weight = draw(20, 32)
    for layer in (
        PackedLinear(quantize(weight, NumberFormat(8)), None, torch.float32, number_of(NumberFormat(8))),
        FloatBlocks(weight, None, 16),
        Int8Blocks(weight, None, 16),
        Int8Linear(weight, None, next(each for each in int8.PRODUCTS if each.name == "triton int8")),
    ):
        assert layer(torch.empty(2, 0, 32)).shape == (2, 0, 20)
