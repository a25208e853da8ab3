"""Idealized runtime is arithmetic on a trace: what must hold whatever the costs are."""

from dataclasses import replace
from itertools import pairwise

import pytest

from harness.core.errors import TraceError
from harness.measure.extra import Extra
from harness.measure.ideal import ideal_runtime
from harness.measure.profile import CostProfile, Fit, HeldOut, Line, LinearCosts, TableCosts, Work, forward_seconds
from harness.measure.segment import unpadded
from harness.measure.shape import ModelShape
from harness.results.costs import AddedCosts
from harness.testing.tiny import tiny_decoder

LAYERS = 4
PREFILL = LinearCosts(
    fixed=1e-3, fixed_token=1e-6, attention=2e-4, attention_token=1e-6, attention_pair=1e-9, mlp=3e-4, mlp_token=2e-6,
    head_row=4e-6,
)  # fmt: skip
DECODE = PREFILL.model_copy(update={"fixed": 5e-4, "fixed_token": 0.0, "attention_pair": 0.0})
PROFILE = CostProfile(
    key="k",
    host={},
    layers=LAYERS,
    clock="thread_time",
    prefill=PREFILL,
    decode=DECODE,
    head=Line(base=1e-4, per_token=1e-6),
    fill=Line(base=2e-5, per_token=1e-7),
    router=Line(base=1e-5, per_token=1e-12),
    prefill_fit=Fit(r2=1, mape=0, worst=0),
    decode_fit=Fit(r2=1, mape=0, worst=0),
    held_out=HeldOut(schedules=8, mape=0, bias=0, speedup_error=0, speedup_worst=0),
    relative_iqr=0,
    others_share=0,
    load_average=(0, 0),
    seconds=0,
    budget_s=60,
    rounds=2,
    cut_short=False,
    complete=True,
    longest=512,
)
LAYER = 2e-4 + 1e-6 + 3e-4 + 2e-6
"""A layer in a decode step."""


@pytest.fixture(scope="module")
def shape():
    return ModelShape.of(tiny_decoder("llama", layers=LAYERS))


@pytest.fixture
def generation(dense_segment):
    """A prompt of p tokens and o written ones, all layers running."""

    def build(p, o, layers=LAYERS):
        ran = (1,) * layers + (0,) * (LAYERS - layers)
        prefill = dense_segment(LAYERS, p, attention=tuple(p * one for one in ran), mlp=tuple(p * one for one in ran))
        if o < 2:
            return [prefill]
        step = dense_segment(LAYERS, 1, phase="decode", context=p + 1, forwards=o - 1, attention=ran, mlp=ran)
        return [prefill, step]

    return build


def total(shape, segments):
    return ideal_runtime(PROFILE, shape, segments).total


def prompt_seconds(p, layers=LAYERS):
    pairs = p * (p + 1) / 2
    return 1e-3 + 1e-6 * p + layers * (2e-4 + 1e-6 * p + 1e-9 * pairs + 3e-4 + 2e-6 * p)


@pytest.mark.parametrize(("p", "o"), [(1, 1), (7, 2), (64, 8), (100, 33)])
def test_full_depth_is_narayanans_form(shape, generation, p, o):
    g = 5e-4 + LAYERS * LAYER
    assert total(shape, generation(p, o)) == pytest.approx(prompt_seconds(p) + (o - 1) * g)


def test_a_layer_less_is_a_layers_cost_less(shape, generation):
    whole, fewer = generation(16, 5), generation(16, 5, LAYERS - 2)
    saved = total(shape, whole[1:]) - total(shape, fewer[1:])
    assert saved == pytest.approx(4 * 2 * LAYER)
    assert total(shape, whole) - total(shape, fewer) == pytest.approx(
        saved + prompt_seconds(16) - prompt_seconds(16, LAYERS - 2)
    )


def test_more_of_anything_costs_more(shape, generation):
    for less, more in (((16, 4), (17, 4)), ((16, 4), (16, 5)), ((16, 4, 2), (16, 4, 3))):
        assert total(shape, generation(*less)) < total(shape, generation(*more))
    assert total(shape, []) == 0


def test_scoring_pays_for_every_row_of_the_head(shape, dense_segment):
    one = dense_segment(LAYERS, 9, phase="score", head=1)
    assert total(shape, [replace(one, head=9)]) - total(shape, [one]) == pytest.approx(8 * 4e-6)


def test_exit_checks_routers_and_fills_are_charged(shape, dense_segment):
    step = dense_segment(LAYERS, 1, phase="decode", context=20)
    for forward in (step, dense_segment(LAYERS, 20)):  # a check is a call of its own in a prefill too
        for calls in (0, 3):  # an older trace does not say that each is a call
            checked = replace(forward, head=forward.head + 3, checks=3, check_calls=calls)
            assert total(shape, [checked]) - total(shape, [forward]) == pytest.approx(3 * (1e-4 + 1e-6))
    routed = ideal_runtime(PROFILE, shape, [replace(step, extra={"router": Extra(2, 0, 10**6)})])
    assert routed.extra["router"] == pytest.approx(2 * 1e-5 + 1e-6)
    filled = ideal_runtime(PROFILE, shape, [replace(step, fill=(0, 0, 1, 1))])
    assert filled.extra["fill"] == pytest.approx(2 * (2e-5 + 1e-7))


@pytest.mark.parametrize("tokens", [1, 17, 40])
def test_an_exit_that_is_checked_at_many_tokens_is_one_call(shape, dense_segment, tokens):
    """On scored text, all predicting tokens are checked at once."""
    text = dense_segment(LAYERS, 48, phase="score", head=tokens)
    checked = replace(text, head=3 * tokens, checks=2 * tokens, check_calls=2)
    head = ideal_runtime(PROFILE, shape, [checked]).head - ideal_runtime(PROFILE, shape, [text]).head
    assert head == pytest.approx(2 * 1e-4 + 2 * tokens * 1e-6)
    added = AddedCosts(call=0.0, check=2e-5, check_token=1e-6)
    assert ideal_runtime(PROFILE, shape, [checked], added).extra["exit"] == pytest.approx(2 * 2e-5 + 2 * tokens * 1e-6)
    with pytest.raises(TraceError, match="without the calls that check exits"):
        total(shape, [replace(checked, check_calls=0)])


def test_a_router_that_sees_many_tokens_is_called_once(shape, dense_segment):
    """Sixteen routers over eight windows each are sixteen calls, whatever each of them sees."""
    prompt = dense_segment(LAYERS, 100, extra={"router": Extra(16 * 8, 16, 10**6)})
    assert ideal_runtime(PROFILE, shape, [prompt]).extra["router"] == pytest.approx(16 * 1e-5 + 1e-6)
    more = replace(prompt, extra={"router": Extra(16 * 64, 16, 10**6)})
    assert ideal_runtime(PROFILE, shape, [more]) == ideal_runtime(PROFILE, shape, [prompt])
    twice = replace(prompt, extra={"router": Extra(16 * 8, 32, 10**6)})
    assert ideal_runtime(PROFILE, shape, [twice]).extra["router"] == pytest.approx(32 * 1e-5 + 1e-6)


def test_an_older_trace_without_calls_is_priced_where_they_are_known(shape, dense_segment):
    step = dense_segment(LAYERS, 1, phase="decode", context=20, extra={"router": Extra(3, 0, 10)})
    assert ideal_runtime(PROFILE, shape, [step]).extra["router"] == pytest.approx(3 * 1e-5, rel=1e-3)
    with pytest.raises(TraceError, match="without the calls of the routers"):
        total(shape, [dense_segment(LAYERS, 100, extra={"router": Extra(16 * 8, 0, 10**6)})])


def test_what_a_method_adds_is_charged_as_it_was_measured(shape, dense_segment):
    added = AddedCosts(call=3e-4, mac=1e-10, position=1e-6, check=2e-5, fill=7e-5)
    prompt = dense_segment(LAYERS, 50, extra={"router": Extra(32, 4, 1000)})
    assert ideal_runtime(PROFILE, shape, [prompt], added).extra["router"] == pytest.approx(4 * (3e-4 + 50e-6) + 1e-7)
    checked = dense_segment(
        LAYERS, 1, phase="decode", context=20, forwards=5, head=3, checks=2, check_calls=2, fill=(0, 0, 1, 1)
    )
    seconds = ideal_runtime(PROFILE, shape, [checked], added)
    assert seconds.extra["exit"] == pytest.approx(5 * 2 * 2e-5)
    assert seconds.head == pytest.approx(5 * 2 * (1e-4 + 1e-6))
    assert seconds.extra["fill"] == pytest.approx(5 * 2 * 7e-5)


def test_padding_and_batches_cost_nothing(shape, dense_segment):
    alone = dense_segment(LAYERS, 9, phase="score", head=9)
    every = (12,) * LAYERS
    padded = replace(alone, queries=12, padding=3, context=12, rows=4, attention=every, mlp=every, head=12)
    assert unpadded([padded])[0].queries == 9
    assert total(shape, [padded]) == pytest.approx(total(shape, [alone]))


def test_a_layer_that_runs_twice_is_charged_twice(shape, dense_segment):
    step = dense_segment(LAYERS, 1, phase="decode", context=20)
    twice = replace(step, attention=(1, 2, 1, 1), mlp=(1, 2, 1, 1))
    assert total(shape, [twice]) - total(shape, [step]) == pytest.approx(LAYER)


def test_a_part_of_the_tokens_costs_a_call_and_its_share(shape, dense_segment):
    whole = dense_segment(LAYERS, 10)
    part = replace(whole, attention=(4, 10, 10, 10), mlp=(4, 10, 10, 10))
    less = 6 * (1e-6 + 2e-6) + 1e-9 * 55 * 0.6
    assert total(shape, [whole]) - total(shape, [part]) == pytest.approx(less)


@pytest.mark.parametrize(("prompt", "written", "seconds"), [(1024, 11, 0.329), (1024, 1, 0.089), (128, 2, 0.051)])
def test_helms_published_times(shape, generation, prompt, written, seconds):
    """T = F(p) + g (o - 1) with HELM's own table of j1-large on an A100: arXiv:2305.02440, helm-efficiency."""
    nothing = dict.fromkeys(("attention", "mlp", "head_row"), (0.0,) * 6)
    reading = TableCosts(
        lengths=(1, 128, 256, 512, 1024, 1920),
        fixed=(0.027, 0.027, 0.029, 0.047, 0.089, 0.167),
        attention_pair=0.0,
        **nothing,
    )
    writing = LinearCosts(**dict.fromkeys(LinearCosts.model_fields, 0.0) | {"fixed": 0.024})
    published = PROFILE.model_copy(update={"prefill": reading, "decode": writing})
    assert ideal_runtime(published, shape, generation(prompt, written)).total == pytest.approx(seconds)


WINDOW = 16


@pytest.fixture(scope="module")
def sliding():
    return ModelShape.of(tiny_decoder("mistral", layers=LAYERS, sliding_window=WINDOW, max_position_embeddings=4096))


def table(pair):
    """A profile of prompts up to 512 tokens on a machine whose decode steps pay ``pair`` for each key."""
    lengths = (1, 8, 16, 32, 64, 128, 256, 512)
    works = [Work(n, n, a, a, 1, (WINDOW,) * a) for n in lengths for a in (1, 2, LAYERS)]
    reading = TableCosts.fit(works, [forward_seconds(PREFILL, work) for work in works], pair)
    return PROFILE.model_copy(update={"prefill": reading, "decode": DECODE.model_copy(update={"attention_pair": pair})})


@pytest.mark.parametrize("pair", [0.0, 1e-9, 1e-6, 1e-3])
def test_windows_never_make_time_negative_and_longer_prompts_take_longer(sliding, generation, pair):
    """Whatever a key costs a decode step, which may be far more than it costs a prompt."""
    profile = table(pair)
    seconds = [ideal_runtime(profile, sliding, generation(p, 9)) for p in range(256, 2049, 128)]
    assert all(part >= 0 for each in seconds for part in each.parts().values())
    assert all(after.total > before.total for before, after in pairwise(seconds))
    full = ideal_runtime(profile, ModelShape.of(tiny_decoder("llama", layers=LAYERS)), generation(512, 1))
    assert ideal_runtime(profile, sliding, generation(512, 1)) == full  # its prompt is multiplied whole, and masked


@pytest.mark.parametrize("context", [5, 15, 16, 17, 400])
@pytest.mark.parametrize("kind", ["linear", "table"])
def test_a_step_is_charged_as_it_was_fitted(sliding, dense_segment, kind, context):
    """The trace's forwards and the fit's are one arithmetic."""
    profile = table(3e-6)
    costs = profile.decode if kind == "linear" else profile.prefill
    phase, n = ("decode", 1) if kind == "linear" else ("prefill", 4)
    segment = dense_segment(LAYERS, n, phase=phase, context=context)
    work = Work(n, context, LAYERS, LAYERS, windows=(WINDOW,) * LAYERS)
    assert ideal_runtime(profile, sliding, [segment]).total == pytest.approx(forward_seconds(costs, work))


def test_fewer_keys_than_queries_cost_no_less_than_nothing(shape, dense_segment):
    """A cache that shows a prompt fewer positions than it has."""
    profile = table(1e-3)
    segment = dense_segment(LAYERS, 500, keys=(3,) * LAYERS)
    assert segment.executed_pairs(0) == 3 * 500 - 3
    assert all(part >= 0 for part in ideal_runtime(profile, shape, [segment]).parts().values())
