"""A number format that this processor is slow in is said in one line; operators are probed, not assumed."""

import pytest
import torch

from harness.measure import arithmetic, operators
from harness.measure.arithmetic import advise, slowdown, time_ratio
from harness.model.weights import sparse_kernels
from harness.testing.tiny import tiny_decoder
from tests import kernels_here


@pytest.fixture
def said():
    return []


def test_a_slow_number_format_is_said_with_the_flag_that_helps(monkeypatch, said):
    model = tiny_decoder("llama")
    model.module.to(torch.bfloat16)
    monkeypatch.setattr(arithmetic, "slowdown", lambda dtype: {torch.bfloat16: 16.8}[dtype])
    advise(model, said.append)
    (line,) = said
    assert "takes 17 times as long in bfloat16 as in float32" in line
    assert "--model_args dtype=float32" in line


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float32, 9.0), (torch.bfloat16, 1.9)])
def test_a_format_that_costs_little_is_not_mentioned(dtype, ratio, monkeypatch, said):
    model = tiny_decoder("llama")
    model.module.to(dtype)
    monkeypatch.setattr(arithmetic, "slowdown", lambda _: ratio)
    advise(model, said.append)
    assert not said


def test_the_probe_times_products_in_both_types_and_draws_nothing(monkeypatch):
    clock = iter(range(1, 100))
    products = []

    def seconds(_, call):
        products.append(call().dtype)
        return float(next(clock))

    monkeypatch.setattr(arithmetic, "seconds", seconds)
    state = torch.get_rng_state()
    assert slowdown(torch.bfloat16) == 1 / 2  # the shortest of 1, 3, 5 over the shortest of 2, 4, 6
    assert products == [torch.bfloat16, torch.float32] * 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_ratio_is_of_the_shortest_turns(monkeypatch):
    times = iter([8.0, 5.0, 6.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr(arithmetic, "seconds", lambda clock, call: next(times))
    assert time_ratio(list, list) == 3


def test_operators_are_named_as_they_run_here(monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "slowdown", lambda dtype: 7.0)
    monkeypatch.setattr(sparse_kernels, "load", lambda: ("no C compiler: install gcc",) * 5)
    with kernels_here.timed(tmp_path):
        found = {operator.name: operator for operator in operators.operators()}
    assert list(found) == ["bfloat16", "float16", "int8-dynamic", "block-sparse"]
    assert not found["bfloat16"].fast
    assert "7x the time of float32" in found["bfloat16"].detail
    assert found["int8-dynamic"].fast is (kernels_here.PRODUCT is not None)
    assert (kernels_here.PRODUCT.name if kernels_here.PRODUCT else "simulated") in found["int8-dynamic"].detail
    assert found["block-sparse"] == operators.Operator("block-sparse", False, "simulated: no C compiler: install gcc")


def test_what_cannot_be_probed_is_a_sentence(monkeypatch):
    def refuse(_):
        raise RuntimeError("no kernel\nfor this type")

    monkeypatch.setattr(operators, "slowdown", refuse)
    monkeypatch.setenv("HARNESS_ISA", "sse9")
    details = {operator.name: operator.detail for operator in operators.operators()}
    assert details["float16"] == "cannot be probed: no kernel"
    assert details["block-sparse"].startswith("HARNESS_ISA=sse9: expected plain")
