"""One request alone: when its tokens came, and that a method cannot end it early."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from harness.contract.decoder import Row
from harness.measure.interleave import Participant, interleave
from harness.measure.serve import CostRequest, Served, serve
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

PROMPT = CostRequest("t", 0, tuple(range(3, 12)), 9, 5)
TEXT = CostRequest("t", 1, tuple(range(3, 12)), 4, 0)


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=2)


def test_times_are_mlperfs():
    served = Served((0.5, 0.7, 0.8, 1.4), (1, 2, 3, 4))
    assert (served.ttft, served.end_to_end) == (0.5, 1.4)
    assert served.tpot == pytest.approx(0.3)
    assert served.gaps == pytest.approx([0.2, 0.1, 0.6])
    for alone in (Served((0.5,), (1,)), Served((0.5,), (0,)), Served((0.5,), (4,))):
        assert alone.tpot is None
        assert alone.gaps == []


def test_tokens_that_arrive_together_share_their_time():
    served = Served((0.5, 0.7, 1.1), (2, 3, 7))  # a draft of several tokens was accepted twice
    assert served.tokens_after_first == 5
    assert served.tpot == pytest.approx(0.6 / 5)
    assert served.gaps == pytest.approx([0.2, 0.4])


def test_rounds_of_several_tokens_are_counted_by_tokens(model, monkeypatch):
    """A generation that asks whether to stop once for several tokens, as speculation does."""

    def generate(ids, *, stopping_criteria, **_):
        for accepted in (3, 4, 5):
            ids = torch.cat([ids, ids[:, : accepted - (ids.shape[1] - len(PROMPT.tokens))]], dim=1)
            assert stopping_criteria(ids, None).all() == (accepted == PROMPT.new_tokens)
        return ids

    monkeypatch.setattr(model.module, "generate", generate)
    served = serve(model, PROMPT)
    assert served.tokens == (3, 4, 5)
    assert served.tpot == pytest.approx((served.times[-1] - served.times[0]) / 2)


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

    def look(*_):
        seen.append((model.context.kind, model.context.rows, model.context.decoding))

    handle = model.module.register_forward_pre_hook(look)
    try:
        serve(model, replace(PROMPT, parts=(2,)))
        serve(model, TEXT)
    finally:
        handle.remove()
    prompt, text = Row("t", 0, (2,), 9, 9), Row("t", 1, (0,), 4, 9)
    steps = [("generate", (prompt,), step > 0) for step in range(5)]
    assert seen == [*steps, ("score", (text,), False)]


def test_the_evaluations_arguments_of_generation_are_the_request_s(model):
    """Those of the checkpoint's file give way to them, and a cache of fixed size is as large as in the evaluation."""
    sizes, config = [], model.module.generation_config
    handle = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["past_key_values"].get_max_length()), with_kwargs=True
    )
    before, config.num_beams = config.num_beams, 3
    try:
        served = serve(model, replace(PROMPT, most=20, options={"num_beams": 1, "cache_implementation": "static"}))
    finally:
        handle.remove()
        config.num_beams = before
    assert served.tokens == (1, 2, 3, 4, 5)
    assert set(sizes) == {9 + 20 - 1}


def test_everybody_serves_every_request_in_every_round(model):
    order = []

    class Attached:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            order.append(self.name)

        def __exit__(self, *_):
            order.append(None)

    participants = [Participant(name, lambda name=name: Attached(name)) for name in ("dense", "method")]
    bar = Silent()
    turns = interleave(partial(serve, model), participants, [PROMPT, TEXT], rounds=3, warmup=1, seed=0, bar=bar)
    assert bar.expected == bar.advanced == (3 + 1) * 2 * 2
    for participant in participants:
        assert [len(rounds) for rounds in turns.served[participant]] == [3, 3]
        assert all(served.tpot is None for served in turns.served[participant][1])  # a scored text has none
    assert order.count("dense") == order.count("method")
    assert torch.is_grad_enabled()
