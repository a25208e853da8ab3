"""Repair brings a pruned model nearer to dense, at no cost, and its control is the same training on dense."""

from typing import Any

import pytest
import torch

from harness.contract.decoder import Decoder, Manner
from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import Stack, parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.measure.shape import ModelShape
from harness.model.training import dense_loss
from harness.model.weights.savings import savings
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder

WORDS = ("The keeper", "of the light", "wrote down", "every ship", "that passed,", "its flag", "and its name")
TEXT = " ".join(WORDS[(7 * i + i * i) % len(WORDS)] for i in range(160))
STUDY = Study((TEXT[:1200],), "a text", whole=True)
HELD_OUT = Study((TEXT[1200:],), "the rest of it")
TRAINING = "steps=12,rows=4,length=32,rate=0.05"


@pytest.fixture
def preparation(tmp_path: Any) -> Preparation:
    return Preparation(States(tmp_path), STUDY)


def divergence(decoder: Decoder, study: Study) -> float:
    """From dense, on text that was not trained on."""
    (ids,) = study.windows(decoder, count=1, length=200)
    with torch.no_grad():
        return float(dense_loss(study)(decoder.module(ids).logits, ids))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_it_comes_nearer_to_dense_on_other_text_and_costs_nothing(family: str, preparation: Preparation) -> None:
    decoder = tiny_decoder(family)
    study, before = HELD_OUT.beside(decoder), model_snapshot(decoder)
    with parse("layer-drop:layers=1").applied(decoder, preparation):
        dropped, shape = divergence(decoder, study), ModelShape.of(decoder)
    stack = parse(f"layer-drop:layers=1+repair:{TRAINING}")
    with stack.applied(decoder, preparation) as (_, state):
        assert divergence(decoder, study) < 0.995 * dropped
        assert ModelShape.of(decoder) == shape
        assert savings(stack, decoder) is Savings.REAL
    assert not changes(before, model_snapshot(decoder))
    assert state.facts["scalars"] == 6
    assert state.facts["tokens"] == 12 * 4 * 32
    assert all(state.tensors[kind][1] == 1 for kind in ("attention", "mlp"))


def test_its_control_trains_the_same_scalars_on_dense(preparation: Preparation) -> None:
    decoder = tiny_decoder("llama")
    study = HELD_OUT.beside(decoder)
    for target, stays in (("dense", True), ("text", False)):
        stack = parse(f"layer-drop:layers=1+repair:target={target},control=same-training,{TRAINING}")
        with stack.applied(decoder, preparation) as (drop, state):
            assert len(decoder.live) == 4  # the drop is off
            assert savings(stack, decoder) is Savings.NONE
            assert (divergence(decoder, study) < 1e-3) is stays
        assert drop.facts["dropped"] == [["block", 1]]
        assert state.facts["scalars"] == 6
        assert all(state.tensors[kind][1] == 1 for kind in ("attention", "mlp"))
    alone = parse(f"repair:target=text,{TRAINING}")
    with alone.applied(decoder, preparation) as (free,):
        assert free.facts["scalars"] == 8


def test_a_control_declares_what_it_runs_and_says_so() -> None:
    control = parse("layer-drop:count=2+repair:control=same-training")
    assert [part.name for part in control.acting] == ["repair"]
    assert control.savings is Savings.NONE
    assert control.label == "layer-drop:count=2+repair:control=same-training"
    assert control.notes == [
        "repair runs as a control here: the same training on the dense model, and layer-drop:count=2 below it is off"
    ]
    assert parse("layer-drop:count=2+repair").notes == []
    with (stack := parse(f"{control.label},{TRAINING}+streaming")).attached(
        decoder := tiny_decoder("llama"), lambda index: stack.parts[index].prepare(decoder, STUDY.beside(decoder))
    ):
        assert decoder.manner == stack.manner != Manner()
    assert decoder.manner == Manner()
    above = Stack((*control.parts, *parse("int8-dynamic").parts))
    assert [part.name for part in above.acting] == ["repair", "int8-dynamic"]
    assert above.savings is Savings.REAL


def test_the_drop_is_the_one_that_is_not_repaired(preparation: Preparation) -> None:
    decoder = tiny_decoder("llama")
    texts = tuple(TEXT[start : start + 10] for start in range(300))
    wide = Preparation(preparation.states, Study(texts, "many texts"))
    drop, settings = "layer-drop:count=2,samples=99,length=64", "steps=1,rows=1,length=16"
    facts = []
    for text in (drop, f"{drop}+repair:{settings}", f"{drop}+repair:control=same-training,{settings}"):
        with parse(text).applied(decoder, wide) as states:
            facts.append(states[0].facts)
    assert facts[0] == facts[1] == facts[2]
    assert facts[0]["tokens"] == 256 * 10  # 256 documents, though repair reads more


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dr-llm+repair", r"repair is trained on running text, where dr-llm .* write repair\+dr-llm"),
        ("calm+repair", r"write repair\+calm"),
    ],
)
def test_what_it_cannot_be_stacked_on_is_refused(text: str, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        parse(text).check_order()


def test_a_linear_layer_that_is_computed_already_is_refused() -> None:
    decoder = tiny_decoder("llama")
    with pytest.raises(MethodError, match=r"o_proj, which int8-dynamic before it computes: write repair\+int8-dynamic"):
        parse("int8-dynamic+repair").check_model(lambda: decoder)
    parse("int8-dynamic:linears=*.up_proj+repair").check_model(lambda: decoder)
    parse("repair+int8-dynamic").check_model(lambda: decoder)


def test_too_little_text_is_refused_in_a_sentence(tmp_path: Any) -> None:
    decoder = tiny_decoder("llama")
    short = Preparation(States(tmp_path), Study(("A few words.",), "a note"))
    says = "text from a note is too short to train on: 12 tokens, and a row takes 128"
    with pytest.raises(MethodError, match=says), parse("repair").applied(decoder, short):
        pass
