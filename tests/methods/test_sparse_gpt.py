"""SparseGPT: its choice and its updates by hand, what it records, and what it stacks with."""

import logging

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.methods.pruning.sparse_gpt import SparseGPT, sparsified
from harness.model.weights.compensation import Hessian
from harness.model.weights.formats import NumberFormat, Quantized, quantize, rounded, scales
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.pruning import keep
from harness.model.weights.savings import savings
from harness.testing.tiny import tiny_decoder
from tests import kernels_here

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"samples": 2, "length": 48}


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


@pytest.fixture
def toy():
    """A weight [8, 160] and second moments of correlated inputs, in double precision."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 160, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(160, 160, generator=generator, dtype=torch.float64) * (1 + torch.arange(160) % 5)
    return torch.randn(8, 160, generator=generator, dtype=torch.float64), 2 / len(x) * x.T @ x


@pytest.mark.parametrize("number", [None, NumberFormat(4, 32)], ids=["float", "int4"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "16x1", "64x1"])
def test_the_error_is_that_of_the_outputs(pattern, number, toy):
    weight, gram = toy
    hessian = Hessian.of(gram)
    new, error = sparsified(weight, hessian, pattern, 0.5, number)
    change = weight - new
    assert error == pytest.approx(float(torch.trace(change @ hessian.damped @ change.T)), rel=1e-9)
    share = (new == 0).double().mean()
    assert share == 0.5 if number is None else share > 0.5  # small weights are rounded to zero too
    if pattern == "2:4":
        zeros = (new.view(8, -1, 4) == 0).sum(2)
        assert (zeros == 2).all() if number is None else (zeros >= 2).all()
    if pattern in ("4x1", "16x1", "64x1") and number is None:
        rows = (new == 0).view(-1, min(int(pattern[:-2]), 8), 160)
        assert (rows.all(1) == rows.any(1)).all()


def test_a_block_of_columns_loses_its_least_over_all_rows(toy):
    weight, gram = toy
    hessian = Hessian.of(torch.diag(gram.diagonal()))  # nothing is passed on, so that the choice can be seen
    new, _ = sparsified(weight, hessian, "unstructured", 0.5)
    scores = weight.abs() * hessian.damped.diagonal().sqrt()
    for columns in (slice(0, 128), slice(128, 160)):
        gone = new[:, columns] == 0
        assert int(gone.sum()) == gone.numel() // 2
        assert scores[:, columns][gone].max() < scores[:, columns][~gone].min()


def test_what_stays_is_on_the_grid_of_the_format_and_makes_up_for_rounding_too(toy):
    weight, gram = toy
    hessian, number = Hessian.of(gram), NumberFormat(4, 32)
    new, error = sparsified(weight, hessian, "2:4", 0.5, number)
    codes = new.view(8, -1, 32) / scales(weight, number)[0][..., None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    assert codes.abs().max() <= 7.001
    pruned, scale = sparsified(weight, hessian, "2:4", 0.5)[0], scales(weight, number)[0]
    afterwards = Quantized(number, rounded(pruned, scale, None, number), scale).dequantized().double()
    assert error < hessian.error(weight - afterwards)


def test_without_correlations_it_is_wanda_and_changes_nothing_else(toy):
    weight, gram = toy
    hessian = Hessian.of(torch.diag(gram.diagonal()))
    new, _ = sparsified(weight, hessian, "2:4", 0.5)
    kept = keep(weight.abs() * hessian.damped.diagonal().sqrt(), "2:4", 0.5, "rows")
    assert torch.equal(new, weight * kept)


def test_it_errs_less_than_wanda_and_magnitude(toy):
    weight, gram = toy
    hessian = Hessian.of(gram)
    _, error = sparsified(weight, hessian, "unstructured", 0.5)
    norms = gram.diagonal().sqrt()
    wanda = hessian.error(weight * ~keep(weight.abs() * norms, "unstructured", 0.5, "rows"))
    magnitude = hessian.error(weight * ~keep(weight.abs(), "unstructured", 0.5, "matrix"))
    assert error < 0.9 * wanda < 0.9 * magnitude


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "16x1"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_state_holds_weights_of_the_model(family, pattern, ids):
    decoder = tiny_decoder(family)
    decoder.module.bfloat16()
    method = SparseGPT(pattern=pattern, **SMALL)
    dense, state = logits(decoder, ids), method.prepare(decoder, TEXT)
    assert state.tensors.keys() == {site.name for site in sites(decoder)}
    assert {tensor.dtype for tensor in state.tensors.values()} == {torch.bfloat16}
    assert 0.49 < state.facts["zeros"] < 0.51 or pattern == "16x1"
    assert state.facts["tokens"] == 96
    assert 0 < state.facts["error"] < 1
    with method.attach(decoder, state):
        assert not torch.equal(logits(decoder, ids), dense)
        assert all(torch.equal(site.weight, state.tensors[site.name]) for site in sites(decoder))
        assert savings(parse("sparse-gpt"), decoder) is Savings.SIMULATED
        assert kernel_counts(decoder) == {f"dense product over {pattern} zeros": len(sites(decoder))}
    assert torch.equal(logits(decoder, ids), dense)


def test_layers_of_no_sparsity_are_left(ids):
    decoder = tiny_decoder("gpt2")
    dense = logits(decoder, ids)
    method = SparseGPT(sparsity=(0, 0.5, 0, 0), **SMALL)
    state = method.prepare(decoder, TEXT)
    assert {site.layer for site in sites(decoder) if site.name in state.tensors} == {1}
    nothing = SparseGPT(sparsity=(0,), **SMALL)
    with nothing.attach(decoder, nothing.prepare(decoder, TEXT)):
        assert torch.equal(logits(decoder, ids), dense)


def test_in_turn_is_another_choice():
    decoder = tiny_decoder("llama")
    states = [SparseGPT(in_turn=in_turn, **SMALL).prepare(decoder, TEXT).tensors for in_turn in (False, True)]
    same = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    assert same[:3] == [True] * 3  # queries, keys and values of the first layer read the same
    assert not any(same[3:])


def test_a_row_without_weights_is_warned_of(caplog):
    decoder = tiny_decoder("llama")
    decoder.module.model.layers[1].mlp.up_proj.weight.data[5] *= 1e-4
    method = SparseGPT(**SMALL)
    state = method.prepare(decoder, TEXT)
    assert state.facts["emptied"] == ["model.layers.1.mlp.up_proj"]
    assert state.facts["fewest"] == 0
    with caplog.at_level(logging.WARNING, "harness"), method.attach(decoder, state):
        assert "a row lost all of its weights in 1 of 28 linear layers: model.layers.1.mlp.up_proj" in caplog.text


def test_damage_and_widths_that_do_not_fit_are_refused():
    decoder = tiny_decoder("llama")
    decoder.module.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(MethodError, match=r"sparse-gpt: the new weight of .*1\.mlp\.up_proj is not finite"):
        SparseGPT(**SMALL).prepare(decoder, TEXT)
    with pytest.raises(MethodError, match="2:4 needs a multiple of 4 inputs; a linear layer here has 30"):
        SparseGPT(pattern="2:4", **SMALL).prepare(tiny_decoder("llama", intermediate_size=30), TEXT)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("sparse-gpt:bits=9", "sparse-gpt: bits=9 is not valid: give 2 to 8, or 16 for no rounding"),
        ("sparse-gpt:group=16", "sparse-gpt: group=16 is of weights that are rounded: give bits too"),
        ("sparse-gpt:bits=4,group=7", "sparse-gpt: group=7 does not divide the 32 inputs"),
    ],
)
def test_formats_that_do_not_fit_are_refused(written, says):
    with pytest.raises(MethodError, match=says):
        parse(written).check_model(lambda: tiny_decoder("llama"))


def test_two_of_each_four_stay_zero_in_eight_bits(tmp_path):
    decoder = kernels_here.force(tiny_decoder("llama"), "dense")
    stack = parse("sparse-gpt:pattern=2:4,samples=2,length=48+int8-dynamic")
    with stack.applied(decoder, Preparation(States(tmp_path), TEXT)) as states:
        assert kernel_counts(decoder) == {"dense product over int8 values": 28}
        for site in sites(tiny_decoder("llama")):
            new = states[0].tensors[site.name]
            assert ((quantize(new, NumberFormat(8)).codes.view(-1, 4) == 0).sum(1) >= 2).all()


def test_it_stacks(tmp_path, ids):
    decoder = kernels_here.force(tiny_decoder("llama"))
    preparation = Preparation(States(tmp_path), TEXT)
    stack = parse(
        "layer-drop:layers=1+sparse-gpt:pattern=16x1,sparsity=0.75,samples=2,length=48+block-sparse:number=fp32"
    )
    with stack.applied(decoder, preparation) as states:
        assert states[2].facts == {"as pruned": True}
        assert all(".layers.1." not in name for name in states[1].tensors)
        kernels = logits(decoder, ids)
        assert sum(kernel_counts(decoder).values()) == 21
    with parse(stack.label.rpartition("+")[0]).applied(decoder, preparation):
        torch.testing.assert_close(logits(decoder, ids), kernels, rtol=1e-4, atol=1e-4)
