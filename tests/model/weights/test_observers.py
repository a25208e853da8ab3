"""Observers hold what the formulas say, once for linear layers that read one tensor; columns make up for each other."""

from itertools import pairwise

import pytest
import torch

from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.model.weights.compensation import DAMPING, Hessian, compensated
from harness.model.weights.curvatures import Curvatures
from harness.model.weights.layerwise import layer_by_layer
from harness.model.weights.linear import masked, sites
from harness.model.weights.observers import AbsMax, Gram, MeanAbs, SumOfSquares, calibrate, observe
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import FAMILIES, tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
KINDS = {
    Gram: lambda x: 2 / len(x) * x.T @ x,
    AbsMax: lambda x: x.abs().amax(0),
    MeanAbs: lambda x: x.abs().mean(0),
    SumOfSquares: lambda x: x.square().sum(0),
}


def windows(decoder, count=3, length=40):
    return list(TEXT.windows(decoder, count=count, length=length))


@pytest.mark.parametrize("family", FAMILIES)
def test_observers_hold_the_formulas_and_are_shared_by_readers_of_one_tensor(family):
    decoder = tiny_decoder(family, layers=2)
    every = sites(decoder)

    def visit(block, run):
        own = [site for site in every if site.layer == block.index]
        inputs = {site.name: [] for site in own}
        run({site.module: inputs[site.name].append for site in own})
        observers = {kind: observe(kind, own, run) for kind in KINDS}
        for kind, formula in KINDS.items():
            for site in own:
                value, x = observers[kind][site.name].value, torch.cat(inputs[site.name]).double()
                assert value.dtype is torch.float64
                torch.testing.assert_close(value, formula(x), rtol=1e-5, atol=1e-5)
        by_module = {site.module: observers[Gram][site.name] for site in own}
        reading = [
            {id(by_module[block.roles[role].module]) for role in roles if role in block.roles} for roles in TURNS
        ]
        assert all(len(group) == 1 for group in reading)
        assert len({id(each) for each in by_module.values()}) >= 4 - block.parallel
        return masked([])

    layer_by_layer(decoder, windows(decoder), visit)


TURNS = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))


def test_tensors_that_follow_each_other_in_memory_are_told_apart():
    decoder = tiny_decoder("llama")
    first, second = sites(decoder)[:2]

    def run(observers):
        for fill in (1.0, 2.0):  # each is freed before the next one is made, which may take its place
            for site in (first, second):
                observers[site.module](torch.full((3, 32), fill if site is first else 10 * fill))

    observed = observe(SumOfSquares, [first, second], run)
    assert observed[first.name].value[0] == 3 * (1 + 4)
    assert observed[second.name].value[0] == 3 * (100 + 400)


def test_a_linear_layer_that_reads_nothing_has_an_empty_observer():
    site = sites(tiny_decoder("llama"))[0]
    for kind in KINDS:
        assert not observe(kind, [site], lambda observers: None)[site.name].value.any()


def test_inputs_that_are_not_finite_are_refused():
    gram = Gram(site := sites(tiny_decoder("llama"))[0])
    gram(torch.full((2, 32), float("inf")))
    with pytest.raises(MethodError, match=rf"the inputs of {site.name} are not finite"):
        _ = gram.value


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_each_reads_what_the_changed_ones_before_it_give(family, in_turn):
    decoder = tiny_decoder(family, layers=2)
    before, given, every = model_snapshot(decoder), windows(decoder), sites(decoder)
    seen, order = {}, []

    def change(site, observer):
        seen[site.name] = observer.value
        order.append(site.module)
        return 0.5 * site.weight

    assert calibrate(decoder, given, every, SumOfSquares, change, in_turn=in_turn) == 120
    assert not changes(before, model_snapshot(decoder))
    last = decoder.anatomy.blocks[1]
    site = next(site for site in every if site.module is last.roles["down"].module)
    ahead = [
        each for each in every if each.layer == 0 or (in_turn and each.layer == 1 and each.module is not site.module)
    ]
    total = torch.zeros(site.weight.shape[1], dtype=torch.float64)

    def add(_, args):
        total.add_(args[0].double().reshape(-1, len(total)).square().sum(0))

    handle = site.module.register_forward_pre_hook(add)
    with torch.no_grad():
        for each in ahead:
            each.module.weight.mul_(0.5)
        for window in given:
            decoder.module(input_ids=window)
    handle.remove()
    torch.testing.assert_close(seen[site.name], total, rtol=1e-4, atol=1e-4)


def test_a_failure_in_the_middle_restores():
    decoder = tiny_decoder("llama", layers=2)
    before = model_snapshot(decoder)

    def change(site, observer):
        if site.name.endswith("1.mlp.down_proj"):
            raise KeyError
        return 2 * site.weight

    with pytest.raises(KeyError):
        calibrate(decoder, windows(decoder), sites(decoder), AbsMax, change, in_turn=True)
    assert not changes(before, model_snapshot(decoder))


# ---- columns that make up for each other --------------------------------------------------------------------


@pytest.fixture
def toy():
    """A weight [6, 300] over three blocks of columns, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(300, 300, generator=generator, dtype=torch.float64)
    x = torch.randn(900, 300, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(6, 300, generator=generator, dtype=torch.float64), 2 / len(x) * x.T @ x


def test_the_errors_that_are_passed_on_are_those_of_the_outputs(toy):
    weight, gram = toy
    hessian = Hessian.of(gram)
    torch.testing.assert_close(hessian.upper.T @ hessian.upper @ hessian.damped, torch.eye(300).double())
    new, error = compensated(weight, hessian, lambda column, now: now[:, column].round())
    assert torch.equal(new, new.round())
    change = weight - new
    assert error == pytest.approx(float(torch.trace(change @ hessian.damped @ change.T)), rel=1e-9)
    assert error == pytest.approx(hessian.error(change), rel=1e-9)
    plain = weight - weight.round()
    assert error < 0.8 * hessian.error(plain)


def test_without_correlations_every_column_is_for_itself(toy):
    weight, gram = toy
    hessian = Hessian.of(torch.diag(gram.diagonal()))
    new, _ = compensated(weight, hessian, lambda column, now: now[:, column].round())
    assert torch.equal(new, weight.round())


def test_inputs_that_were_never_there_lose_their_weights(toy):
    weight, gram = toy
    gram[[3, 200]] = 0
    gram[:, [3, 200]] = 0
    hessian = Hessian.of(gram)
    assert hessian.dead.nonzero().flatten().tolist() == [3, 200]
    new, error = compensated(weight, hessian, lambda column, now: now[:, column])
    assert not new[:, [3, 200]].any()
    assert torch.equal(new[:, :3], weight[:, :3])
    assert error == 0


def test_inputs_of_which_nothing_is_known_keep_their_weights(toy):
    weight, gram = toy
    hessian = Hessian.of(torch.zeros_like(gram))
    assert not hessian.dead.any()
    assert torch.equal(compensated(weight, hessian, lambda column, now: now[:, column].round())[0], weight.round())


def test_an_order_of_the_inputs_changes_no_formula(toy):
    weight, gram = toy
    gram[[3, 200]] = 0
    gram[:, [3, 200]] = 0
    plain, hessian = Hessian.of(gram), Hessian.of(gram, largest_first=True)
    assert hessian.order.tolist()[-2:] == [3, 200]
    diagonal = hessian.damped.diagonal()
    assert (diagonal[1:-2] <= diagonal[:-3]).all()
    new, error = compensated(weight, hessian, lambda column, now: now[:, column].round())
    assert torch.equal(new, new.round())
    assert not new[:, [3, 200]].any()
    alive = weight.clone()
    alive[:, [3, 200]] = 0
    assert error == pytest.approx(float(torch.trace((alive - new) @ plain.damped @ (alive - new).T)), rel=1e-9)
    assert error == pytest.approx(hessian.error(alive - new), rel=1e-9)


def test_linear_layers_that_read_one_tensor_have_one_hessian():
    decoder = tiny_decoder("llama", layers=2)
    curvatures, factors = Curvatures(), []

    def change(site, gram):
        factors.append(curvatures.hessian(site, gram).upper)
        return site.weight

    tokens = calibrate(decoder, windows(decoder, count=1), sites(decoder), Gram, change, in_turn=True)
    same = [first is second for first, second in pairwise(factors[:7])]
    assert same == [True, True, False, False, True, False]
    facts = curvatures.facts(tokens)
    assert facts["short"] == [site.name for site in sites(decoder) if site.name.endswith("down_proj")]


def test_damping_grows_until_there_is_a_factor(toy):
    gram = toy[1]
    assert Hessian.of(gram).damping == DAMPING
    gram[0, 1] = gram[1, 0] = 1.05 * (gram[0, 0] * gram[1, 1]).sqrt()  # no matrix of second moments any more
    assert Hessian.of(gram).damping in (0.1, 1.0)
    with pytest.raises(MethodError, match="no positive definite matrix"):
        Hessian.of(gram - 3 * gram.diagonal().mean() * torch.eye(300))
