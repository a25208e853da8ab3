"""Block-sparse prunes as Wanda does, answers as the pruned weights do, and says truthfully what runs."""

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import Stack, parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.measure.shape import ModelShape
from harness.methods.pruning.wanda import Wanda
from harness.methods.sparse.block_sparse import BlockSparse
from harness.model.weights import sparse_kernels
from harness.model.weights.kernel_plan import first_kernels, plan_kernels
from harness.model.weights.linear import kernel_counts
from harness.model.weights.savings import savings
from harness.testing.tiny import tiny_decoder
from tests.kernels_here import force, require_compiled

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"samples": 3, "length": 48}


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("pattern", ["16x1", "4x1"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_it_answers_as_the_pruned_weights_do(family, pattern, ids):
    require_compiled()
    decoder = tiny_decoder(family)
    wanda = Wanda(sparsity=(0.5,), pattern=pattern, **SMALL)
    with wanda.attach(decoder, wanda.prepare(decoder, TEXT)):
        pruned = logits(decoder, ids)
    for number, tolerance in (("fp32", 1e-5), ("int8", 0.05)):
        method = BlockSparse(sparsity=(0.5,), pattern=pattern, number=number, **SMALL)
        decoder.kernels = first_kernels((method,), decoder)
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            assert error(logits(decoder, ids), pruned) < tolerance
            (name,) = kernel_counts(decoder)
            assert name.startswith(f"block-sparse {number} {pattern}, ")
        for kernel in (*decoder.kernels.values(), "dense"):
            with method.attach(force(decoder, kernel), method.prepare(decoder, TEXT)):
                assert error(logits(decoder, ids), pruned) < tolerance


def test_a_stack_takes_the_zeros_as_they_are(tmp_path, ids):
    require_compiled()
    decoder, preparation = tiny_decoder("llama"), Preparation(States(tmp_path), TEXT)
    wanda, stack = (
        parse(text)
        for text in (
            "wanda:pattern=16x1,sparsity=0.25/0.5/0.75/0.5,samples=3,length=48",
            "wanda:pattern=16x1,sparsity=0.25/0.5/0.75/0.5,samples=3,length=48+block-sparse:number=fp32",
        )
    )
    with wanda.applied(decoder, preparation):
        pruned = logits(decoder, ids)
        assert savings(wanda, decoder) is Savings.SIMULATED
    with stack.applied(decoder, preparation, first_kernels(stack.parts, decoder)) as states:
        assert error(logits(decoder, ids), pruned) < 1e-5
        assert savings(stack, decoder) is Savings.REAL
        shares = [layer.mlp.macs for layer in ModelShape.of(decoder).layers]
    dense = 3 * 32 * 48
    # inputs that stay: of up and gate of 32, of down of 48
    assert shares == [2 * 48 * (32 - int(32 * s)) + 32 * (48 - int(48 * s)) for s in (0.25, 0.5, 0.75, 0.5)]
    assert max(shares) < dense
    assert states[1].facts == {"as pruned": True}


@pytest.mark.parametrize(
    "below", ["wanda:samples=2,length=48", "wanda:pattern=2:4,samples=2,length=48", "magnitude:pattern=4x1"]
)
def test_zeros_that_leave_no_blocks_are_refused(below, tmp_path):
    stack = parse(f"{below}+block-sparse")
    with (
        pytest.raises(MethodError, match="leaves hardly a block of 16x1 all zero: prune with pattern=16x1"),
        stack.applied(tiny_decoder("llama"), Preparation(States(tmp_path), TEXT)),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "kernel"), [("int8", "dense product over int8 values"), ("fp32", "dense product over zeros")]
)
def test_without_a_kernel_it_is_simulated_and_says_why(number, kernel, monkeypatch, ids):
    decoder = tiny_decoder("llama")
    method = BlockSparse(sparsity=(0.5,), number=number, **SMALL)
    state, dense = method.prepare(decoder, TEXT), ModelShape.of(decoder)
    decoder.kernels = first_kernels((method,), decoder)
    with method.attach(decoder, state):
        real = logits(decoder, ids)
    monkeypatch.setattr(sparse_kernels, "load", lambda: ("no C compiler: install gcc",) * 5)
    plan = plan_kernels((method,), decoder, "cpu")
    assert plan.notes == ["block-sparse multiplies densely: no C compiler: install gcc"]
    assert set(plan.by_place.values()) == {kernel}
    with method.attach(decoder, state):
        assert error(logits(decoder, ids), real) < 1e-5
        assert set(kernel_counts(decoder)) == {kernel}
        assert savings(Stack((method,)), decoder) is Savings.SIMULATED
        shape = ModelShape.of(decoder)
    assert [layer.mlp.macs for layer in shape.layers] == [layer.mlp.macs for layer in dense.layers]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"sparsity": 1}, "sparsity=1 is not valid"),
        ({"sparsity": "-0.1"}, "sparsity='-0.1' is not valid"),
        ({"pattern": "2:4"}, "pattern='2:4' is not valid.*'16x1' or '4x1'"),
        ({"number": "int4"}, "number='int4' is not valid"),
    ],
)
def test_nonsense_is_refused(args, says):
    with pytest.raises(MethodError, match=says):
        BlockSparse.from_args(args)


def test_sparsities_must_fit_the_model():
    with pytest.raises(MethodError, match="3 sparsities are given; the model has 4 layers: give one, or 4"):
        BlockSparse(sparsity=(0.5, 0.5, 0.5), **SMALL).prepare(tiny_decoder("llama"), TEXT)
