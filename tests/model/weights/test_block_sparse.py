"""The kernels agree with the dense product over the same weights, are counted by hand, and a fault in one is seen."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear

from harness.core.errors import CompileError, KernelError, MethodError
from harness.measure.audit import count_flops
from harness.model.weights import block_sparse, compiled
from harness.model.weights.block_sparse import (
    SOURCE,
    Blocks,
    BlockSparseLinear,
    Kernels,
    block_sparse_map,
    check,
    why_not,
)
from harness.model.weights.compiled import library
from harness.model.weights.int8 import Int8Linear


@pytest.fixture(scope="module")
def kernels():
    found = block_sparse.kernels()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def use(kernels, level, monkeypatch):
    """Let maps be made for the kernels of a level."""
    if level > kernels.level:
        pytest.skip(f"this processor has no {('', 'AVX512-VNNI', 'AMX')[level]}")
    monkeypatch.setattr(block_sparse, "kernels", lambda: replace(kernels, level=level))


def sparse(out, inputs, rows, sparsity, seed=0):
    """A weight with the share of its blocks zero, at random: groups differ in how many they keep."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-out // rows), inputs, generator=generator) >= sparsity
    return torch.randn(out, inputs, generator=generator) * kept.repeat_interleave(rows, 0)[:out] / 8


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("rows", [16, 4])
@pytest.mark.parametrize(("out", "inputs"), [(64, 64), (50, 131), (1, 1), (259, 1000)])
def test_every_kernel_is_the_dense_product(out, inputs, rows, level, kernels, monkeypatch):
    use(kernels, level, monkeypatch)
    weight, bias = sparse(out, inputs, rows, 0.6), torch.randn(out, generator=torch.Generator().manual_seed(1))
    for tokens in (1, 2, 6, 7, 16, 17, 48, 64, 65, 130):
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens))
        for number, same in (
            ("fp32", lambda x: linear(x, weight, bias)),
            ("int8", Int8Linear(weight, bias, integer=False)),
        ):
            found = BlockSparseLinear(weight, bias, rows, number)(x)
            assert torch.allclose(found, same(x), rtol=1e-4, atol=1e-4), (number, tokens)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_token_gives_the_same_bits_in_any_company(level, kernels, monkeypatch):
    use(kernels, level, monkeypatch)
    bias = torch.randn(64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(70, 96, generator=torch.Generator().manual_seed(0))
    x[5] *= 200
    for rows in (16, 4):
        mapped = BlockSparseLinear(sparse(64, 96, rows, 0.5), bias, rows, "int8")
        alone = torch.cat([mapped(x[i : i + 1]) for i in range(len(x))])
        assert torch.equal(mapped(x), alone)
        assert torch.equal(mapped(x.view(7, 10, 96)).view(70, 64), alone)


def test_what_it_holds_is_counted_by_hand(kernels):
    weight = torch.zeros(20, 12)
    weight[0, [0, 3, 4, 5, 9]] = 1.0  # five blocks of the first group, none of all its other rows
    weight[17, 2] = 1.0  # one of the second, whose 4 rows are filled up to 16
    int8, fp32 = (BlockSparseLinear(weight, None, 16, number) for number in ("int8", "fp32"))
    # five blocks fill two fours, one fills one: three fours of 16 x 4
    assert (int8.macs_per_token, fp32.macs_per_token) == (3 * 64, 6 * 16)
    assert int8.held == fp32.held == 5 * 16 + 4
    assert int8.weight_bytes == 3 * 64 + 2 * 12 + 4 * 3 + 4 * 20 + 4 * 32  # weights, inputs, starts, scales, offsets
    assert fp32.weight_bytes == 4 * 6 * 16 + 2 * 6 + 4 * 3
    for mapped in (int8, fp32):
        _, flops = count_flops(lambda mapped=mapped: mapped(torch.ones(2, 7, 12)))
        assert flops == 2 * 14 * mapped.macs_per_token


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(broken, level, kernels, monkeypatch):
    use(kernels, level, monkeypatch)
    mapped = BlockSparseLinear(sparse(32, 40, 16, 0.0), None, 16, "int8")
    for tokens in (3, 20):
        x = torch.randn(tokens, 40)
        x[1, 7] = broken
        found = mapped(x)
        assert not torch.isfinite(found[1]).any()
        assert torch.isfinite(found[2]).all()


def test_a_map_without_weights_gives_its_bias(kernels):
    for number in ("int8", "fp32"):
        mapped = BlockSparseLinear(torch.zeros(20, 8), torch.arange(20.0), 16, number)
        assert mapped.macs_per_token == 0
        assert torch.equal(mapped(torch.randn(9, 8)), torch.arange(20.0).expand(9, 20))


def test_no_tokens_give_none(kernels):
    weight = sparse(20, 8, 16, 0.5)
    for mapped in (BlockSparseLinear(weight, None, 16, "int8"), BlockSparseLinear(weight, None, 16, "fp32")):
        assert mapped(torch.empty(2, 0, 8)).shape == (2, 0, 20)


def test_weights_that_a_kernel_reads_are_not_cast(kernels):
    with pytest.raises(MethodError, match="cast or move the model before"):
        BlockSparseLinear(sparse(20, 8, 16, 0.5), None, 16, "fp32").bfloat16()


def test_another_default_type_changes_nothing(kernels):
    mapped, x = BlockSparseLinear(sparse(300, 8, 16, 0.5), None, 16, "int8"), torch.randn(9, 8)
    expected = mapped(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(mapped(x), expected)
        check(kernels)
    finally:
        torch.set_default_dtype(torch.float32)


def test_several_threads_give_the_same(kernels):
    weight, x = sparse(300, 200, 16, 0.5), torch.randn(150, 200)
    mapped = BlockSparseLinear(weight, None, 16, "int8")
    expected, threads = mapped(x), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(mapped(x), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_kernel_that_differs_is_refused_and_plain_c_is_named(kernels, monkeypatch, caplog):
    def wrong(level, int8, rows, threads, tokens, inputs, out, x, y, *rest):
        kernels.run(0, int8, rows, threads, tokens, inputs, out, x, y, *rest)
        if level and rows == 4:
            torch.frombuffer((__import__("ctypes").c_float * (tokens * out)).from_address(y), dtype=torch.float32)[
                -1
            ] += 1

    with pytest.raises(KernelError, match="avx512-vnni kernel for int8 in blocks of 4x1 differs"):
        check(Kernels(wrong, level=2))

    class Library:
        block_sparse = staticmethod(wrong)

        def block_sparse_level(self):
            return 2

    monkeypatch.setattr(block_sparse, "library", lambda source: Library())
    found = block_sparse.kernels.__wrapped__()
    assert found.level == 0
    assert "is not used" in caplog.text


def test_no_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompileError, match="no C compiler: CC=no-such-compiler is not found"):
        library(SOURCE)
    found = block_sparse.kernels.__wrapped__()
    assert found == "no C compiler: CC=no-such-compiler is not found"


def test_a_file_that_does_not_compile_is_a_sentence(tmp_path):
    (tmp_path / "broken.c").write_text("int f( { }\n")
    with pytest.raises(CompileError, match=rf"cannot compile {tmp_path.name}: .*error"):
        library(tmp_path)


def test_a_folder_without_source_is_a_sentence(tmp_path):
    with pytest.raises(CompileError, match=r"no C files in .*: the installation is not whole"):
        library(tmp_path)


def test_a_library_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.c").write_text("int one(void) { return 1; }\n")
    assert library(source).one() == 1
    monkeypatch.setattr(compiled, "_build", lambda *_: pytest.fail("compiled again"))
    library(source)
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]


def test_what_the_kernel_does_not_take_is_said(monkeypatch, kernels):
    assert "model is on meta" in why_not(torch.zeros(2, 2, device="meta"))
    assert "up to 65536 inputs, and a map has 65537" in why_not(torch.zeros(1, 2**16 + 1))
    assert why_not(torch.zeros(2, 2)) is None
    assert isinstance(block_sparse_map(torch.zeros(1, 2**16 + 1), None, 16, "int8"), Int8Linear)


def test_blocks_come_back_as_the_weight():
    weight = sparse(20, 10, 4, 0.5)
    blocks = Blocks.of(weight, 4, "fp32")
    again = torch.zeros_like(weight)
    for group in range(5):
        for block in range(int(blocks.start[group]), int(blocks.start[group + 1])):
            again[4 * group : 4 * group + 4, int(blocks.column[block])] = blocks.value[block]
    assert torch.equal(again, weight)
