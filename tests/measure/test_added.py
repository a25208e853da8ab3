"""What methods add to the layers is timed where it happens, whole, and charged by the call."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from harness.contract.decoder import Auxiliary
from harness.measure import added
from harness.measure.added import AddedTimer, fitted
from harness.measure.audit import audit
from harness.measure.extra import Extra
from harness.measure.ideal import ideal_runtime
from harness.measure.interleave import Participant
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, serve
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.methods.routing.router import RouterController, new_router
from harness.model.cache.pressed import pressed
from harness.model.paths.layer_path import routed
from harness.model.tokens.confidence import Saturation, SoftmaxResponse
from harness.model.tokens.exits import EarlyExit
from harness.model.tokens.token_depth import token_depth
from harness.run.measured import Serving
from harness.run.spec import CostPlan
from harness.testing.tiny import tiny_decoder
from tests.measure.test_ideal import PROFILE
from tests.model.cache.test_pressed import heavy_hitters
from tests.silent import Silent

LAYERS = 4
PROMPT = CostRequest("t", 0, tuple(range(3, 15)), 12, 4)
TEXT = CostRequest("t", 1, tuple(range(3, 15)), 9, 0)


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=LAYERS)


@contextmanager
def routers(model):
    drawn = torch.Generator().manual_seed(0)
    controller = RouterController(model, [new_router(32, 8, drawn) for _ in range(LAYERS)], windows=3, control=0.5)
    with routed(model, controller), model.assisted(controller.auxiliaries):
        yield


@contextmanager
def exits(model, confidence):
    with token_depth(model, EarlyExit(model, confidence, lambda *_: -1.0, {1})):
        yield


@contextmanager
def hooked(model):
    """A method of somebody's own, which declares a router and no decision."""
    router = nn.Linear(32, 3)

    def around(_, args):
        router(args[0].mean(1))

    handle = model.anatomy.blocks[0].module.register_forward_pre_hook(around)
    try:
        with model.assisted([Auxiliary(router, "router")]):
            yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def shape(model):
    return ModelShape.of(model)


class Ticks:
    """A clock that moves when it is told to."""

    now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def ticks(monkeypatch):
    clock = Ticks()
    monkeypatch.setattr(added, "mark", lambda _: clock.now)
    return clock


def test_a_decision_is_timed_whole_and_without_the_head(model, ticks):
    router, head = nn.Linear(32, 3), model.anatomy.head
    with model.assisted([Auxiliary(router, "router")]), AddedTimer(model, "wall") as timer:
        handles = [
            router.register_forward_hook(lambda *_: ticks.pass_by(5)),
            head.register_forward_pre_hook(lambda *_: ticks.pass_by(100)),
        ]
        states = torch.zeros(1, 2, 32)
        with model.adding("decision"):
            ticks.pass_by(1)  # pooling
            router(states)
            head(states)
            ticks.pass_by(2)  # reading the result
        with model.adding("fill"):
            ticks.pass_by(7)
        head(states)
        ticks.pass_by(1000)
        assert timer.seconds() == {"decision": 8, "fill": 7}
        assert timer.seconds() == {}
        for handle in handles:
            handle.remove()
    assert model.timer is None
    with model.adding("decision"):
        ticks.pass_by(1)
    assert timer.seconds() == {}


def test_what_declares_no_decision_has_its_modules_timed(model, ticks):
    router = nn.Linear(32, 3)
    with model.assisted([Auxiliary(router, "exit")]), AddedTimer(model, "wall") as timer:
        handle = router.register_forward_pre_hook(lambda *_: ticks.pass_by(5))
        router(torch.zeros(1, 2, 32))
        ticks.pass_by(3)
        assert timer.seconds() == {"decision": 5}
        handle.remove()


def test_what_a_press_chooses_is_timed_and_counted(model, ticks):
    def choose(entries):
        ticks.pass_by(1)
        return heavy_hitters(entries)

    options = {"name": "mine", "reads_queries": True, "remembers": True}
    with pressed(model, choose, ("prefill", "decode"), **options), Tracer(model) as tracer:
        with AddedTimer(model, "wall") as timer:
            serve(model, PROMPT)
        assert timer.seconds() == {"decision": LAYERS * 4}
        prefill, *steps = tracer.collect()[0]
        assert prefill.extra["press"] == Extra(LAYERS * 12, LAYERS, 0, 0.0)
        assert steps[0].extra["press"] == Extra(LAYERS, LAYERS, 0, 0.0)
        assert audit(model, lambda: (serve(model, PROMPT), tracer.collect()[0])[1]).ratio == 1


def test_prices_are_found_from_requests(dense_segment):
    prices = {"call": 3e-5, "mac": 2e-11, "position": 4e-7, "check": 5e-5, "check_token": 2e-6}
    works = [
        (16, 40_000, 10, 0, 0),
        (16, 90_000, 50, 1, 9),
        (4, 9_000, 200, 3, 3),
        (7, 1_000, 20, 2, 40),
        (1, 70_000, 90, 0, 0),
        (2, 3_000, 30, 5, 5),
    ]
    traces = [
        [
            dense_segment(
                LAYERS,
                n,
                phase="score",
                head=n + checks,
                checks=checks,
                check_calls=check_calls,
                extra={"router": Extra(calls, calls, macs)},
            ),
            dense_segment(LAYERS, 1, phase="decode", context=n + 1, forwards=3, fill=(0, 0, 1, 1)),
        ]
        for calls, macs, n, check_calls, checks in works
    ]
    timed = [
        {
            "decision": calls * (prices["call"] + n * prices["position"])
            + macs * prices["mac"]
            + check_calls * prices["check"]
            + checks * prices["check_token"],
            "fill": 6 * 2e-5,
        }
        for calls, macs, n, check_calls, checks in works
    ]
    costs = fitted(traces, timed)
    expected = prices | {"fill_call": 2e-5, "fill": 0.0}
    assert costs.model_dump(exclude={"error"}) == pytest.approx(expected, rel=1e-6)


def test_a_fill_of_many_tokens_is_one_call(dense_segment, shape):
    """On a device that waits for launches, tokens that are filled together cost as one does."""
    prompts = (8, 20, 50)
    traces = [
        [
            dense_segment(LAYERS, n, fill=(0, 0, n, n)),
            dense_segment(LAYERS, 1, phase="decode", context=n + 1, forwards=4, fill=(0, 1, 1, 1)),
        ]
        for n in prompts
    ]
    costs = fitted(traces, [{"fill": (2 + 12) * 3e-5 + (2 * n + 12) * 1e-7} for n in prompts])
    assert (costs.fill_call, costs.fill) == (pytest.approx(3e-5), pytest.approx(1e-7))
    assert costs.error == pytest.approx(0, abs=1e-6)
    seconds = [ideal_runtime(PROFILE, shape, segments, costs).extra["fill"] for segments in traces]
    assert seconds == pytest.approx([(2 + 12) * 3e-5 + (2 * n + 12) * 1e-7 for n in prompts])


def test_prices_say_how_far_they_are_off_other_requests(dense_segment):
    traces = [[dense_segment(LAYERS, n, extra={"router": Extra(4, 4, 400)})] for n in (10, 20, 30)]
    steady = fitted(traces, [{"decision": 4e-4} for _ in traces])
    assert steady.error == pytest.approx(0, abs=1e-9)
    varied = fitted(traces, [{"decision": seconds} for seconds in (6e-4, 2e-4, 4e-4)])
    assert varied.error > 0.2
    assert fitted(traces[:2], [{"decision": 4e-4}] * 2).error is None


def test_calls_that_are_alike_are_paid_by_the_call(dense_segment):
    """Where every call multiplies as much, a price of the products alone would make smaller ones free."""
    lengths = (10, 30, 90)
    traces = [[dense_segment(LAYERS, n, extra={"router": Extra(8, 8, 8 * 768)})] for n in lengths]
    costs = fitted(traces, [{"decision": 8 * 2e-4} for _ in lengths])
    assert (costs.call, costs.mac) == (pytest.approx(2e-4), 0)


def test_checks_that_are_alike_are_paid_by_the_call(dense_segment):
    step = {"phase": "decode", "head": 3, "checks": 2, "check_calls": 2}
    traces = [[dense_segment(LAYERS, 1, context=9, forwards=count, **step)] for count in (2, 5, 9)]
    costs = fitted(traces, [{"decision": 2 * count * 4e-5} for count in (2, 5, 9)])
    assert (costs.check, costs.check_token) == (pytest.approx(4e-5), 0)


@pytest.mark.parametrize("request_", [PROMPT, TEXT])
def test_the_calls_that_check_an_exit_are_traced(model, request_):
    """One for each exit, however many tokens it is checked at."""
    with token_depth(model, EarlyExit(model, SoftmaxResponse(model), lambda *_: 2.0, {1, 2})), Tracer(model) as tracer:
        serve(model, request_)
        segments = tracer.collect()[0]
    for segment in segments:
        assert segment.check_calls == 2
        predicting = len(request_.tokens) - request_.prompt_length + 1 if segment.phase == "score" else 1
        assert segment.checks == 2 * predicting
        assert Segment.from_json(segment.to_json()) == segment


def test_what_did_not_happen_has_no_price(dense_segment):
    costs = fitted([[dense_segment(LAYERS, 9)]], [{}])
    assert costs.call is None
    assert costs.fill is None


@pytest.mark.parametrize(
    ("attach", "request_", "decides", "fills"),
    [
        (routers, PROMPT, True, False),
        (routers, TEXT, True, False),
        (lambda model: exits(model, Saturation(32)), PROMPT, True, True),
        (lambda model: exits(model, SoftmaxResponse(model)), PROMPT, True, True),
        (lambda model: exits(model, Saturation(32)), TEXT, True, False),
        (hooked, TEXT, True, False),
    ],
)
def test_every_kind_of_method_is_timed_as_it_runs(model, attach, request_, decides, fills):
    plan = CostPlan()
    serving = Serving(model, [request_] * 3, plan, Silent(), "t")
    costs = serving.added(Participant("m", lambda: attach(model)))
    assert (costs.call is not None) == decides
    assert (costs.fill is not None) == fills
    assert costs.fill is None or costs.fill + costs.fill_call > 0
    if decides:
        assert costs.call + costs.mac + costs.position + costs.check > 0


def test_a_router_is_called_once_for_all_windows_of_a_prompt(model):
    with routers(model), Tracer(model) as tracer:
        serve(model, PROMPT)
        prefill, *decode = tracer.collect()[0]
    assert (prefill.extra["router"].calls, prefill.extra["router"].tokens) == (LAYERS, 3 * LAYERS)
    assert not any(segment.extra for segment in decode)
