"""Block-sparse layers agree with the dense product over the same weights, on every instruction set, and are counted."""

import pytest
import torch
from torch.nn.functional import linear

from harness.core.errors import MethodError
from harness.measure.audit import count_flops
from harness.model.weights import sparse_kernels
from harness.model.weights.block_sparse import BlockSparseLinear, computations, why_not
from harness.model.weights.blocks import Blocks
from harness.model.weights.computations import Layer
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.sparse_kernels import check


def sparse(out, inputs, rows, sparsity, seed=0):
    """A weight [out, in] with the share of its blocks zero, at random: groups differ in how many they keep."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-out // rows), inputs, generator=generator) >= sparsity
    return torch.randn(out, inputs, generator=generator) * kept.repeat_interleave(rows, 0)[:out] / 8


def layer_of(weight, bias, rows, number):
    """A layer on the best kernels that run here."""
    best = [kernels for kernels in sparse_kernels.load() if not isinstance(kernels, str)][-1]
    return BlockSparseLinear(weight, bias, rows, number, best)


@pytest.mark.parametrize("rows", [16, 4])
@pytest.mark.parametrize(("out", "inputs"), [(64, 64), (50, 131), (1, 1), (259, 1000)])
def test_every_kernel_is_the_dense_product(out, inputs, rows, isa):
    weight, bias = sparse(out, inputs, rows, 0.6), torch.randn(out, generator=torch.Generator().manual_seed(1))
    dense = {"fp32": lambda x: linear(x, weight, bias), "int8": Int8Linear(weight, bias, None)}
    layers = {number: layer_of(weight, bias, rows, number) for number in dense}
    for tokens in (1, 2, 6, 7, 16, 17, 48, 64, 65, 130):
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens))
        for number, layer in layers.items():
            assert torch.allclose(layer(x), dense[number](x), rtol=1e-4, atol=1e-4), (number, tokens)


def test_a_record_names_the_instruction_set(isa):
    names = {
        (rows, number): layer_of(sparse(20, 8, rows, 0.5), None, rows, number).kernel.split(", ")[1]
        for rows in (16, 4)
        for number in ("int8", "fp32")
    }
    expected = {
        "plain": ("plain C", "plain C", "plain C"),
        "avx2": ("avx2", "avx2", "avx2"),
        "avx512": ("avx2", "avx2", "avx512"),
        "avx512-vnni": ("avx512-vnni", "avx512-vnni", "avx512"),
        "amx": ("amx-int8", "avx512-vnni", "avx512"),
    }[isa]
    assert (names[16, "int8"], names[4, "int8"], names[16, "fp32"]) == expected
    assert names[4, "fp32"] == names[16, "fp32"]


def test_a_token_gives_the_same_bits_in_any_company(isa):
    bias = torch.randn(64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(70, 96, generator=torch.Generator().manual_seed(0))
    x[5] *= 200
    for rows in (16, 4):
        layer = layer_of(sparse(64, 96, rows, 0.5), bias, rows, "int8")
        alone = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
        assert torch.equal(layer(x), alone)
        assert torch.equal(layer(x.view(7, 10, 96)).view(70, 64), alone)


def test_what_it_multiplies_and_reads_is_counted_by_hand(kernels):
    weight = torch.zeros(20, 12)
    weight[0, [0, 3, 4, 5, 9]] = 1.0  # five blocks of the first group, none of all its other rows
    weight[17, 2] = 1.0  # one of the second, whose 4 rows are filled up to 16
    int8, fp32 = (layer_of(weight, None, 16, number) for number in ("int8", "fp32"))
    # five blocks fill two quads, one fills one: three quads of 16 x 4
    assert (int8.macs_per_token, fp32.macs_per_token) == (3 * 64, 6 * 16)
    assert int8.weight_count == fp32.weight_count == 5 * 16 + 4
    assert int8.weight_bytes == 3 * 64 + 2 * 12 + 4 * 3 + 4 * 20 + 4 * 32  # weights, inputs, starts, scales, offsets
    assert fp32.weight_bytes == 4 * 6 * 16 + 2 * 6 + 4 * 3
    for layer in (int8, fp32):
        _, flops = count_flops(lambda layer=layer: layer(torch.ones(2, 7, 12)))
        assert flops == 2 * 14 * layer.macs_per_token


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(broken, isa):
    layer = layer_of(sparse(32, 40, 16, 0.0), None, 16, "int8")
    for tokens in (3, 20):
        x = torch.randn(tokens, 40)
        x[1, 7] = broken
        y = layer(x)
        assert not torch.isfinite(y[1]).any()
        assert torch.isfinite(y[2]).all()


def test_a_layer_without_weights_gives_its_bias(kernels):
    for number in ("int8", "fp32"):
        layer = layer_of(torch.zeros(20, 8), torch.arange(20.0), 16, number)
        assert layer.macs_per_token == 0
        assert torch.equal(layer(torch.randn(9, 8)), torch.arange(20.0).expand(9, 20))


def test_no_tokens_give_none(kernels):
    weight = sparse(20, 8, 16, 0.5)
    for layer in (layer_of(weight, None, 16, "int8"), layer_of(weight, None, 16, "fp32")):
        assert layer(torch.empty(2, 0, 8)).shape == (2, 0, 20)


def test_weights_that_a_kernel_reads_are_not_cast(kernels):
    with pytest.raises(MethodError, match="cast or move the model before"):
        layer_of(sparse(20, 8, 16, 0.5), None, 16, "fp32").bfloat16()


def test_another_default_type_changes_nothing(kernels):
    layer, x = layer_of(sparse(300, 8, 16, 0.5), None, 16, "int8"), torch.randn(9, 8)
    expected = layer(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(layer(x), expected)
        check(kernels)
    finally:
        torch.set_default_dtype(torch.float32)


def test_several_threads_give_the_same(kernels):
    weight, x = sparse(300, 200, 16, 0.5), torch.randn(150, 200)
    layer = layer_of(weight, None, 16, "int8")
    expected, threads = layer(x), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(threads)


def test_what_the_kernel_does_not_take_is_said(kernels):
    small, large = (Layer(1, inputs, "float32", rows=16) for inputs in (2, 2**16 + 1))
    assert "model is on cuda:0" in why_not(small, "cuda:0")
    assert "up to 65536 inputs, and a linear layer has 65537" in why_not(large, "cpu")
    assert why_not(small, "cpu") is None
    for layer, device in ((large, "cpu"), (small, "cuda:0")):
        ways = computations(layer, device, "int8")
        assert not ways.able
        assert {kernel.why_not for kernel in ways.kernels if "triton" not in kernel.name} == {why_not(layer, device)}
        assert (ways.why_dense == why_not(layer, device)) == (device == "cpu")  # else Triton's
        assert isinstance(ways.dense.make(torch.zeros(1, layer.inputs), None), Int8Linear)


def test_every_instruction_set_can_be_asked_for(kernel_sets):
    layer, weight = Layer(20, 8, "float32", 0.5, rows=16), sparse(20, 8, 16, 0.5)
    for number in ("int8", "fp32"):
        ways = computations(layer, "cpu", number)
        assert {kernel.name for kernel in ways.able} == {kernel.make(weight, None).kernel for kernel in ways.able}
        assert ways.able[-1].name == f"block-sparse {number} 16x1, plain C"
        x = torch.randn(9, 8)
        for kernel in ways.able:
            assert torch.allclose(kernel.make(weight, None)(x), ways.dense.make(weight, None)(x), rtol=1e-4, atol=1e-4)


def test_blocks_are_the_weight():
    weight = sparse(20, 10, 4, 0.5)
    blocks = Blocks.of(weight, 4, "fp32")
    again = torch.zeros_like(weight)
    for group in range(5):
        for block in range(int(blocks.start[group]), int(blocks.start[group + 1])):
            again[4 * group : 4 * group + 4, int(blocks.column[block])] = blocks.value[block]
    assert torch.equal(again, weight)
