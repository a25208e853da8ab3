"""One request alone: when its tokens came, and that a method cannot end it early."""

import pytest
import torch

from harness.measure.interleave import interleave
from harness.measure.serve import CostRequest, Served, serve
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

PROMPT = CostRequest("t", 0, tuple(range(3, 12)), 9, 5)
TEXT = CostRequest("t", 1, tuple(range(3, 12)), 4, 0)


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=2)


def test_times_are_mlperfs():
    served = Served((0.5, 0.7, 0.8, 1.4))
    assert (served.ttft, served.end_to_end) == (0.5, 1.4)
    assert served.tpot == pytest.approx(0.3)
    assert served.gaps == pytest.approx([0.2, 0.1, 0.6])
    assert Served((0.5,)).tpot is None
    assert Served((0.5,)).gaps == []


def test_as_many_tokens_as_asked_for_whatever_the_model_wants(model):
    ends = model.module.generation_config.eos_token_id
    model.module.generation_config.eos_token_id = list(range(3, 259))  # nearly everything ends a text
    try:
        served = serve(model, PROMPT)
    finally:
        model.module.generation_config.eos_token_id = ends
    assert len(served.times) == 5
    assert list(served.times) == sorted(served.times)
    assert model.context is None


def test_a_text_is_one_forward(model):
    assert len(serve(model, TEXT).times) == 1


def test_the_context_is_the_request(model):
    seen = []
    handle = model.module.register_forward_pre_hook(lambda *_: seen.append(model.context))
    try:
        serve(model, PROMPT)
        serve(model, TEXT)
    finally:
        handle.remove()
    assert {context.kind for context in seen[:-1]} == {"generate"}
    assert seen[-1].kind == "score"
    assert (seen[-1].rows[0].prompt_length, seen[-1].rows[0].length) == (4, 9)


def test_everybody_serves_every_request_in_every_round(model):
    order = []

    class Attached:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            order.append(self.name)

        def __exit__(self, *_):
            order.append(None)

    people = {name: (lambda name=name: Attached(name)) for name in ("dense", "method")}
    bar = Silent()
    turns = interleave(model, people, [PROMPT, TEXT], rounds=3, warmup=1, seed=0, bar=bar)
    assert bar.expected == bar.advanced == (3 + 1) * 2 * 2
    for name in people:
        assert [len(rounds) for rounds in turns.served[name]] == [3, 3]
        assert turns.seconds(name, lambda one: one.end_to_end).shape == (2, 3)
        assert turns.seconds(name, lambda one: one.tpot) is None  # a scored text has none
    assert order.count("dense") == order.count("method")
    assert torch.is_grad_enabled()
