"""Layer drop takes the lowest-scoring units, equals dense at zero, and refuses what it cannot do."""

import json
import subprocess
import sys

import pytest
import torch

from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.study import Study
from harness.core.errors import MethodError, UnknownNameError
from harness.methods.pruning.layer_drop import LayerDrop
from harness.model.influence import influence
from harness.testing.tiny import FAMILIES, tiny_decoder

UNITS = ("block", "attention", "mlp", "joint")
TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"samples": 3, "length": 48}


@torch.no_grad()
def run(decoder, ids):
    out = decoder.module(input_ids=ids, use_cache=True)
    return out.logits, sum(layer.get_seq_length() > 0 for layer in out.past_key_values.layers)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_none_is_dense_bit_for_bit(family, unit, ids):
    decoder, method = tiny_decoder(family), LayerDrop(unit=unit, count=0, **SMALL)
    dense = run(decoder, ids)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        logits, slots = run(decoder, ids)
    assert torch.equal(logits, dense[0])
    assert slots == dense[1] == 4


@pytest.mark.parametrize("unit", UNITS)
def test_the_lowest_scores_go(unit):
    decoder = tiny_decoder("llama", layers=6)
    scores = influence(decoder, TEXT.windows(decoder, count=3, length=48)).scores
    kinds = ("attention", "mlp") if unit == "joint" else (unit,)
    ranked = sorted((score, kind, layer) for kind in kinds for layer, score in enumerate(scores[kind]))
    facts = LayerDrop(unit=unit, count=3, **SMALL).prepare(decoder, TEXT).facts
    assert facts["dropped"] == [[kind, layer] for _, kind, layer in ranked[:3]]
    assert facts["scores"] == {kind: list(scores[kind]) for kind in kinds}
    assert facts["tokens"] == 3 * 48
    assert json.loads(json.dumps(facts)) == facts


def test_joint_can_drop_both_kinds():
    decoder = tiny_decoder("llama", layers=6)
    dropped = LayerDrop(unit="joint", count=7, **SMALL).prepare(decoder, TEXT).facts["dropped"]
    assert {unit for unit, _ in dropped} == {"attention", "mlp"}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_chosen_is_what_is_removed(family, unit, ids):
    decoder, method = tiny_decoder(family), LayerDrop(unit=unit, count=2, **SMALL)
    dense, _ = run(decoder, ids)
    prepared, ran = method.prepare(decoder, TEXT), set()
    for block in decoder.anatomy.blocks:
        for kind, branch in (("attention", block.attention), ("mlp", block.mlp)):
            key = (kind, block.index)
            branch.linears()[0].register_forward_hook(lambda *_, key=key: ran.add(key))
    with method.attach(decoder, prepared):
        logits, slots = run(decoder, ids)
    gone = {tuple(pair) for pair in prepared.facts["dropped"]}
    gone |= {(kind, layer) for unit, layer in gone if unit == "block" for kind in ("attention", "mlp")}
    everything = {(kind, layer) for layer in range(4) for kind in ("attention", "mlp")}
    assert ran == everything - gone
    assert slots == 4 - sum(kind == "attention" for kind, _ in gone)
    assert not torch.equal(logits, dense)
    ran.clear()
    assert torch.equal(run(decoder, ids)[0], dense)
    assert ran == everything


def test_layers_can_be_named_instead_of_chosen(ids):
    decoder = tiny_decoder("llama")
    method = LayerDrop.from_args({"unit": "attention", "layers": "3/1"})
    prepared = method.prepare(decoder, TEXT)
    assert prepared.facts == {"dropped": [["attention", 1], ["attention", 3]]}
    with method.attach(decoder, prepared):
        assert run(decoder, ids)[1] == 2


def test_windows_are_cut_to_the_models_positions():
    decoder = tiny_decoder("gpt2", n_positions=16)
    assert LayerDrop(count=1, samples=2, length=64).prepare(decoder, TEXT).facts["tokens"] == 32


@pytest.mark.parametrize(
    ("written", "layers"),
    [("3/4/7", (3, 4, 7)), ("7/3", (3, 7)), ("5", (5,)), (5, (5,)), ([2, 1], (1, 2)), ("", ())],
)
def test_layers_are_read_as_the_command_line_writes_them(written, layers):
    assert LayerDrop.from_args({"layers": written}).layers == layers


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"count": "0"},
        {"unit": "mlp", "count": "2"},
        {"unit": "joint", "count": "5", "samples": "8"},
        {"unit": "attention", "layers": "0/4"},
        {"layers": "0/1/2/3"},
    ],
    ids=str,
)
def test_label_params_and_fingerprint_come_round(args):
    method = LayerDrop.from_args(args)
    name, _, written = method.label.partition(":")
    again = LayerDrop.from_args(dict(part.split("=") for part in written.split(",")) if written else {})
    assert name == "layer-drop"
    assert again == method == LayerDrop(**method.params())
    assert again.fingerprint == method.fingerprint
    assert json.loads(json.dumps(method.params())) == method.params()


def test_one_way_of_dropping_has_one_fingerprint():
    methods = [LayerDrop(layers=(2, 1)), LayerDrop(layers=(1, 2)), LayerDrop(layers=(1, 2), count=2)]
    assert len({method.fingerprint for method in methods}) == 1
    assert LayerDrop(count=2).fingerprint != LayerDrop(count=3).fingerprint != methods[0].fingerprint


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"unit": "head"}, "unit='head' is not valid.*'block', 'attention', 'mlp' or 'joint'"),
        ({"count": -1}, "count=-1 is not valid.*greater than or equal to 0"),
        ({"count": "many"}, "count='many' is not valid"),
        ({"layers": "1/x"}, "layers='1/x' is not valid"),
        ({"layers": "-1"}, "layers='-1' is not valid"),
        ({"layers": "1/1"}, "names a layer twice"),
        ({"layers": "1/2", "count": 3}, "count=3 contradicts"),
        ({"layers": "1", "unit": "joint"}, "takes count, not layers"),
        ({"samples": 0}, "samples=0 is not valid"),
        ({"length": 1}, "length=1 is not valid"),
    ],
)
def test_nonsense_is_refused(args, says):
    with pytest.raises(MethodError, match=says):
        LayerDrop.from_args(args)


def test_an_unknown_argument_names_the_near_one():
    with pytest.raises(UnknownNameError, match=r"'counts'.*Did you mean 'count'"):
        LayerDrop.from_args({"counts": 2})


@pytest.mark.parametrize(("unit", "most"), [("block", 3), ("attention", 3), ("mlp", 3), ("joint", 7)])
def test_more_than_the_model_has_is_refused_with_the_range(unit, most):
    decoder = tiny_decoder("llama")
    with pytest.raises(MethodError, match=f"count={most + 1} with unit={unit}.*from 0 to {most} can be dropped"):
        LayerDrop(unit=unit, count=most + 1, **SMALL).prepare(decoder, TEXT)


def test_a_layer_that_the_model_lacks_is_refused():
    decoder, method = tiny_decoder("llama"), LayerDrop(layers=(1, 9))
    prepared = Prepared(facts={"dropped": [["block", 1], ["block", 9]]})
    for refused in (lambda: method.prepare(decoder, TEXT), method.attach(decoder, prepared).__enter__):
        with pytest.raises(MethodError, match="no layer 9; the model's layers are 0 to 3"):
            refused()


def test_naming_the_parameters_needs_no_torch():
    code = (
        "import sys; from harness.methods.pruning.layer_drop import LayerDrop; import harness.methods.dense;"
        "LayerDrop(count=2).label; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_class_keeps_the_contract():
    assert issubclass(LayerDrop, Method)
    assert LayerDrop().needs_preparation
    assert "Parameters:" in LayerDrop.__doc__
