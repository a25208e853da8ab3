"""Attention over lists of keys: in C and under a mask the product in float64, in as many pairs as it says."""

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.core import cpu
from harness.core.errors import KernelError, SpecError
from harness.core.source import of_modules
from harness.model.sparse_attention import gather_kernels
from harness.model.sparse_attention import masked as under_mask
from harness.model.sparse_attention.gather_kernels import reference
from harness.model.sparse_attention.lists import kernel_name, over_lists, unable
from harness.model.sparse_attention.masked import masked


@pytest.fixture
def compiled():
    if isinstance(reason := gather_kernels.best(), str):
        pytest.skip(reason)


def drawn(rows=2, heads=6, kv_heads=2, queries=3, keys=40, width=20, value_width=12):
    draw = torch.Generator().manual_seed(1)
    shapes = ((heads, queries, width), (kv_heads, keys, width), (kv_heads, keys, value_width))
    return tuple(torch.randn(rows, *shape, generator=draw) for shape in shapes)


def lists(q, k, kept, shared, gaps=0):
    draw = torch.Generator().manual_seed(2)
    order = torch.rand(len(q), 1 if shared else k.shape[1], q.shape[2], k.shape[2], generator=draw).argsort(-1)
    places = order[..., :kept].sort(-1).values
    places[..., :gaps] = -1
    return places


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("kept", "gaps"), [(1, 0), (7, 2), (40, 0)])
def test_lists_are_the_masked_product(shared, kept, gaps):
    q, k, v = drawn()
    chosen = lists(q, k, kept, shared, gaps)
    expected = reference(q, k, v, chosen, 0.3).float()
    output, pairs = over_lists(q, k, v, chosen, 0.3)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    in_double, every = over_lists(*(each.double() for each in (q, k, v)), chosen, 0.3)  # the kernel is for float32
    torch.testing.assert_close(in_double.float(), expected, atol=1e-5, rtol=1e-5)
    assert every == 2 * 6 * 3 * 40
    assert pairs == (every if unable("cpu", torch.float32) else 2 * 6 * 3 * kept)


@pytest.mark.usefixtures("compiled")
def test_every_set_that_this_processor_has_is_right():
    for level in range(gather_kernels.best() + 1):
        assert gather_kernels.check(level) == level


@pytest.mark.usefixtures("compiled")
def test_keys_are_read_where_they_are():
    """Of a cache whose rows, heads and keys lie in any order; and what has no number is none in the output."""
    q, k, v = drawn()
    chosen = lists(q, k, 9, shared=False)
    expected, _ = over_lists(q, k, v, chosen, 0.3)
    turned = (each.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for each in (k, v))
    assert torch.equal(over_lists(q, *turned, chosen, 0.3)[0], expected)
    assert torch.equal(over_lists(q, *(each.mT.contiguous().mT for each in (k, v)), chosen, 0.3)[0], expected)
    for number in (torch.nan, torch.inf):
        broken = q.clone()
        broken[0, 1, 2, 3] = number
        output, _ = over_lists(broken, k, v, chosen, 0.3)
        assert not output[0, 1, 2].isfinite().any()
        output[0, 1, 2] = expected[0, 1, 2]
        assert torch.equal(output, expected)
    nothing = torch.full_like(chosen, -1)
    assert (over_lists(q, k, v, nothing, 0.3)[0] == 0).all()


@pytest.mark.usefixtures("compiled")
def test_scores_of_any_size_are_as_softmax_has_them():
    q, k, v = drawn()
    chosen = lists(q, k, 12, shared=True)
    for scale in (1e-3, 30.0, 1e4):
        expected = reference(q, k, v, chosen, scale).float()
        torch.testing.assert_close(over_lists(q, k, v, chosen, scale)[0], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_its_products_are_counted_by_the_dispatcher():
    q, k, v = drawn()
    with FlopCounterMode(display=False) as counter:
        _, pairs = over_lists(q, k, v, lists(q, k, 7, shared=True), 0.3)
    assert counter.get_total_flops() == 2 * pairs * (20 + 12)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_a_mask_for_all_heads_for_those_that_share_keys_or_for_each(heads, monkeypatch):
    monkeypatch.setattr(under_mask, "BLOCK", 2)
    q, k, v = drawn()
    readable = torch.rand(2, heads, 3, 40, generator=torch.Generator().manual_seed(3)) < 0.3
    output, pairs = masked(q, k, v, lambda block: readable[:, :, block], 0.3)
    every = readable.repeat_interleave(6 // heads, 1)
    k, v = (each.repeat_interleave(3, 1) for each in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, every, scale=0.3)
    torch.testing.assert_close(output, expected)
    assert pairs == 2 * 6 * 3 * 40


def test_why_no_kernel_runs_is_said(monkeypatch):
    assert unable("cuda:0", torch.float32) == "its kernel is for a CPU, and the model is on cuda:0"
    assert unable("cpu", torch.bfloat16) == "its kernel is for float32, and the model is in bfloat16"
    monkeypatch.setattr(gather_kernels, "best", lambda: "no C compiler: install gcc or clang, or set CC")
    assert unable("cpu", torch.float32) == "no C compiler: install gcc or clang, or set CC"


@pytest.mark.usefixtures("compiled")
def test_the_instruction_set_can_be_limited(monkeypatch):
    monkeypatch.setenv("HARNESS_ISA", "plain")
    assert gather_kernels.best() == 0
    assert kernel_name() == "gather attention on plain C"
    monkeypatch.setenv("HARNESS_ISA", "avx1")
    with pytest.raises(SpecError, match="HARNESS_ISA=avx1: expected plain, avx2"):
        gather_kernels.best()


@pytest.mark.usefixtures("compiled")
def test_a_kernel_that_is_wrong_is_not_taken(monkeypatch, caplog):
    def check(level):
        if level:
            raise KernelError(f"the {cpu.KERNEL_SETS[level]} kernel differs")
        return level

    monkeypatch.setattr(gather_kernels, "check", check)
    gather_kernels._best.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert gather_kernels.best() == 0
    finally:
        gather_kernels._best.cache_clear()


def test_zeros_are_no_right_kernel(monkeypatch):
    monkeypatch.setattr(gather_kernels, "_gathered", lambda q, k, v, *_: q.new_zeros(*q.shape[:3], v.shape[-1]))
    with pytest.raises(KernelError, match=r"the plain kernel for attention over lists of keys differs .* is not used"):
        gather_kernels.check(0)


@pytest.mark.parametrize("method", ["sparse.quest", "sparse.tidal_decode", "sparse.window_attention", "cache.kv_evict"])
def test_the_kernels_source_tells_apart_the_methods_that_it_runs_for(method):
    files = of_modules(f"harness.methods.{method}").files
    kernel = "harness.model.sparse_attention.gather_kernels/gather_lanes.h"
    assert (kernel in files) == (method in ("sparse.quest", "sparse.tidal_decode"))
