"""Masks have the pattern and the scores that they are said to have; layers are pruned on what they will read."""

import gc
import logging
import sys

import pytest
import torch
from safetensors.torch import load_file

from harness.contract.prepared import Prepared
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.model.weights import pruning
from harness.model.weights.layerwise import layer_by_layer
from harness.model.weights.linear import masked, sites
from harness.model.weights.pruning import Pruned, keep, magnitude, wanda, without
from harness.testing.tiny import FAMILIES, tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")


def windows(decoder, count=3, length=40):
    return list(TEXT.windows(decoder, count=count, length=length))


@pytest.fixture
def scores():
    return torch.rand(37, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("pattern", "rows"), [("unstructured", 1), ("4x1", 4), ("16x1", 16)])
def test_every_row_of_blocks_loses_its_least(pattern, rows, sparsity, scores):
    kept = keep(scores, pattern, sparsity, "rows")
    for start in range(0, 37, rows):
        block, stays = scores[start : start + rows].square().sum(0), kept[start : start + rows]
        assert (stays == stays[0]).all()
        assert int((~stays[0]).sum()) == int(24 * sparsity)
        if sparsity > 0:
            assert block[~stays[0]].max() < block[stays[0]].min()


def test_in_a_whole_matrix_the_least_go_wherever_they_are(scores):
    scores[:18] *= 10
    kept = keep(scores, "unstructured", 0.5, "matrix")
    assert int((~kept).sum()) == 37 * 24 // 2
    assert scores[~kept].max() < scores[kept].min()
    assert kept[:18].float().mean() > 0.9


def test_two_of_each_four_stay(scores):
    kept = keep(scores, "2:4", 0.5, "rows").view(-1, 4)
    fours = scores.view(-1, 4)
    assert (kept.sum(1) == 2).all()
    assert all(four[~stays].max() < four[stays].min() for four, stays in zip(fours, kept, strict=True))
    with pytest.raises(MethodError, match="needs a multiple of 4 inputs; a linear layer here has 23"):
        keep(scores[:, :23], "2:4", 0.5, "rows")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layer_by_layer_is_the_model(family):
    decoder = tiny_decoder(family)
    given = windows(decoder, count=12)  # the last is shorter
    inputs, expected = {}, {}
    blocks = decoder.anatomy.blocks
    handles = [
        block.mlp.linears()[0].register_forward_pre_hook(
            lambda _, args, index=block.index: expected.setdefault(index, []).append(args[0])
        )
        for block in blocks
    ]
    for window in given:
        decoder.module(input_ids=window)
    for handle in handles:
        handle.remove()
    expected = {index: torch.cat([x.reshape(-1, x.shape[-1]) for x in found]) for index, found in expected.items()}

    def visit(block, run):
        run({block.mlp.linears()[0]: lambda x: inputs.setdefault(block.index, []).append(x)})
        return masked([])

    assert layer_by_layer(decoder, given, visit) == sum(window.shape[1] for window in given)
    for index, found in inputs.items():
        assert torch.allclose(torch.cat(found), expected[index], atol=1e-4)
    assert len({window.shape[1] for window in given}) == 2
    assert len(inputs) == len(blocks)


@torch.no_grad()
def test_a_later_layer_is_scored_on_what_the_pruned_ones_before_give():
    decoder = tiny_decoder("llama")
    chosen, given = sites(decoder), windows(decoder)
    pruned = wanda(decoder, given, chosen, "unstructured", [0.5] * 4)
    site = next(site for site in chosen if site.name.endswith("2.mlp.up_proj"))
    squares = torch.zeros(32, dtype=torch.float64)

    def add(_, args):
        squares.add_(args[0].double().square().sum((0, 1)))

    handle = site.module.register_forward_pre_hook(add)
    before = [other for other in chosen if other.layer < 2]
    with masked((other, pruned.masks[other.name], "unstructured") for other in before):
        for window in given:
            decoder.module(input_ids=window)
    handle.remove()
    by_hand = site.weight.double().abs() * squares.sqrt()
    least = by_hand.argsort(1)[:, :16]
    assert not pruned.masks[site.name].gather(1, least).any()
    assert pruned.zeros == 0.5
    assert pruned.tokens == 120


def test_a_layer_that_is_out_is_passed_over():
    from harness.model.surgery import without_blocks, without_branches

    decoder = tiny_decoder("llama")
    with without_blocks(decoder, [1]), without_branches(decoder, attention=[2]):
        chosen = sites(decoder)
        masks = wanda(decoder, windows(decoder), chosen, "16x1", [0.5] * 4).masks
    assert {site.layer for site in chosen} == {0, 2, 3}
    assert len(masks) == 7 + 3 + 7


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_torchao_prunes_the_same(pattern):
    if "torchao" not in sys.modules:
        pytest.importorskip("torchao", reason="pip install 'efficiency-harness[torchao]' compares with its Wanda")
    from torchao.sparsity.wanda import WandaSparsifier

    decoder, other = tiny_decoder("llama"), tiny_decoder("llama")
    given = windows(decoder)
    norms = {}

    def visit(block, run):
        own = [site for site in sites(decoder) if site.layer == block.index]
        found = {site.module: torch.zeros(site.weight.shape[1], dtype=torch.float64) for site in own}
        run({module: lambda x, module=module: found[module].add_(x.double().square().sum(0)) for module in found})
        norms.update({site.name: found[site.module] for site in own})
        return masked([])  # torchao scores all layers on the dense model

    layer_by_layer(decoder, given, visit)
    sparsifier = WandaSparsifier(sparsity_level=0.5, semi_structured_block_size=4 if pattern == "2:4" else None)
    sparsifier.prepare(other.module, [{"tensor_fqn": f"{site.name}.weight"} for site in sites(decoder)])
    with torch.no_grad():
        for window in given:
            other.module(input_ids=window)
    sparsifier.step()
    sparsifier.squash_mask()
    weights = dict(other.module.named_parameters())
    for site in sites(decoder):
        # torchao multiplies by the squared norm, and compares within the whole matrix
        ours = keep(site.weight.abs() * norms[site.name].float(), pattern, 0.5, "matrix")
        assert torch.equal(ours, weights[f"{site.name}.weight"] != 0), site.name


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "16x1"])
def test_masks_survive_their_packing(pattern, tmp_path):
    decoder = tiny_decoder("opt")
    chosen = sites(decoder)
    pruned = wanda(decoder, windows(decoder), chosen, pattern, [0.5] * 4)
    pruned.state().save(tmp_path / "state", {})
    again = Pruned.of(Prepared.load(tmp_path / "state", {}), chosen)
    assert all(torch.equal(again.masks[name], mask) for name, mask in pruned.masks.items())
    stored = load_file(tmp_path / "state" / "state.safetensors").values()
    assert sum(tensor.nbytes for tensor in stored) * 8 == sum(mask.numel() for mask in pruned.masks.values())


def test_a_collapsed_layer_is_reported(caplog, monkeypatch):
    monkeypatch.setattr(pruning, "COLLAPSED", 0.1)
    decoder = tiny_decoder("llama")
    chosen = sites(decoder, ["*.0.mlp.up_proj", "*.1.mlp.up_proj"])
    pruned = magnitude(chosen, "unstructured", [0.9999, 0.5, 0, 0])
    assert pruned.collapsed == ["model.layers.0.mlp.up_proj"]
    with caplog.at_level(logging.WARNING, "harness"), without(decoder, chosen, pruned, "unstructured"):
        pass
    assert "1 of 2 pruned linear layers keep less than 10%" in caplog.text
    assert "model.layers.0.mlp.up_proj" in caplog.text


@pytest.mark.parametrize("where", ["weight", "activation"])
def test_what_is_not_finite_is_refused_by_name(where):
    decoder = tiny_decoder("llama")
    with torch.no_grad():
        if where == "weight":
            decoder.module.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
        else:
            decoder.module.model.embed_tokens.weight[:] = float("inf")
    says = "scores of model.layers.1.mlp.up_proj" if where == "weight" else "layers.0.self_attn.q_proj are not finite"
    with pytest.raises(MethodError, match=says):
        wanda(decoder, windows(decoder), sites(decoder), "unstructured", [0.5] * 4)


def test_too_little_text_is_refused():
    decoder = tiny_decoder("llama")
    with pytest.raises(MethodError, match="calibration text from nothing is too short"):
        wanda(
            decoder,
            Study(("a",), "nothing").windows(decoder, count=2, length=8),
            sites(decoder),
            "4x1",
            [0.5] * 4,
        )


def test_memory_does_not_grow_with_depth():
    decoder = tiny_decoder("llama", layers=8)
    before = {id(part): part for part in gc.get_objects() if type(part) is torch.Tensor}  # what other tests have left
    states = {}

    def visit(block, run):
        run({block.mlp.linears()[0]: lambda x: None})
        if block.index in (1, 7):
            gc.collect()
            tensors = [part for part in gc.get_objects() if type(part) is torch.Tensor and id(part) not in before]
            states[block.index] = len({part.data_ptr() for part in tensors if part.shape == (1, 40, 32)})
        return masked([])

    layer_by_layer(decoder, windows(decoder, count=6), visit)
    assert abs(states[7] - states[1]) < 6  # six windows: keeping every layer's would be 36 more
