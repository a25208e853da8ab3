"""A profile is kept by the modules in place, whatever method put them there, and is measured again only on request."""

import json
from contextlib import contextmanager

import pytest
import torch

from harness.cli.profile import _limits
from harness.core.paths import cache_folder
from harness.measure.cells import Grid
from harness.measure.clock import clock_for
from harness.measure.modules import profile_key
from harness.measure.probe import Depths, Prober
from harness.measure.profile import FAIR, GOOD
from harness.measure.profiles import kept_profile, measured_profile
from harness.measure.profiling import default_budget, measure_profile
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.surgery import without_blocks
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=4)


@pytest.fixture(scope="module")
def profile(model):
    return measure_profile(model, Silent(), budget_s=1e-9)


def test_the_budget_follows_the_quality_pass():
    assert [default_budget(seconds) for seconds in (0, 40, 100, 299, 1e6)] == [10, 10, 20, pytest.approx(59.8), 60]


def test_a_profile_that_had_no_time_says_so(profile):
    assert profile.cut_short
    assert not profile.complete
    assert profile.label != "good"
    assert profile.longest == 16
    assert profile.label_for(16) == profile.label
    assert profile.label_for(17) == "poor"
    assert profile.rounds == 0
    assert profile.held_out.schedules >= 2


@pytest.mark.parametrize("complete", [True, False])
def test_nothing_is_known_of_longer_prompts_than_were_timed(profile, complete):
    exact = {"mape": 0, "bias": 0, "speedup_error": 0, "speedup_worst": 0}
    fits = {name: profile.prefill_fit.model_copy(update={"mape": 0}) for name in ("prefill_fit", "decode_fit")}
    held_out = profile.held_out.model_copy(update=exact)
    sure = profile.model_copy(update={"complete": complete, "longest": 512, "held_out": held_out, **fits})
    assert sure.label_for(512) == sure.label == ("good" if complete else "fair")
    assert sure.label_for(513) == sure.label_for(4096) == "poor"


def test_a_profile_of_an_older_procedure_is_not_kept(profile):
    path = cache_folder() / "profiles" / "older.json"
    older = profile.model_dump(mode="json")
    path.write_text(json.dumps(older))
    assert kept_profile("older") is not None
    del older["windows"]
    path.write_text(json.dumps(older))
    assert kept_profile("older") is None
    path.unlink()


def test_a_profile_is_kept_and_known_by_its_measurement(model, profile):
    assert kept_profile(profile_key(model)) == profile == measured_profile(profile.id)
    assert measured_profile(f"{profile.key}-00000000") is None
    assert kept_profile("0" * 16) is None


def test_more_budget_is_spent_on_request_alone(profile):
    assert not profile.improvable(None)
    assert not profile.improvable(profile.budget_s)
    assert profile.improvable(1.0)
    assert not profile.model_copy(update={"cut_short": False}).improvable(1e6)


def test_layers_that_are_gone_do_not_change_what_the_others_cost(model):
    dense = profile_key(model)
    with without_blocks(model, {1, 2}):
        assert profile_key(model) == dense


@contextmanager
def replaced(model, **attributes):
    """One linear layer computed by a stand-in."""

    class Other(torch.nn.Module):
        macs_per_token, weight_bytes, kernel = 1024, 4096, "dense"

        def __init__(self, rows):
            super().__init__()
            self.register_buffer("packed", torch.zeros(rows, 4, dtype=torch.int8))

    other = Other(attributes.pop("rows", 8))
    for name, value in attributes.items():
        setattr(other, name, value)
    linear = model.anatomy.blocks[0].mlp.linears()[0]
    linear.add_module("computed_by", other)
    try:
        yield
    finally:
        del linear._modules["computed_by"]


@pytest.mark.parametrize("change", [{}, {"kernel": "int8"}, {"rows": 16}, {"macs_per_token": 512}])
def test_other_modules_have_a_profile_of_their_own(model, change):
    """Kernel, tensors and work tell them apart; the same ones are the same, whoever put them there."""
    dense = profile_key(model)
    with replaced(model, **change):
        key = profile_key(model)
    assert key != dense
    with replaced(model, **change):
        assert profile_key(model) == key
    if change:
        with replaced(model):
            assert profile_key(model) != key
    assert profile_key(model) == dense


@pytest.mark.parametrize(("family", "changes"), [("mistral", {"sliding_window": 16}), ("llama", {})])
def test_the_grid_meets_the_keys_that_a_trace_shows(family, changes):
    """What a cell is fitted by is what the same forward is charged by."""
    model = tiny_decoder(family, layers=3, max_position_embeddings=512, **changes)
    prober = Prober(model, clock_for(model.device))
    grid, shape = Grid.of(prober, 512, 0), ModelShape.of(model)
    sliding = tuple(layer.window for layer in shape.layers if layer.window is not None)
    assert sliding == tuple(changes.values()) * 3
    whole = [work for work, _ in [*grid.prefill, *grid.decode] if work.attention == work.mlp == 3 and work.n < 100]
    assert {work.windows for work in whole} == {sliding}
    for work in {(work.n, work.c): work for work in whole}.values():
        with Tracer(model) as tracer:
            prober.forward(work, Depths(prober.live), 1)
            segment = tracer.collect()[0][-1]
        pairs = [segment.executed_pairs(index, layer.window) for index, layer in enumerate(shape.layers)]
        assert sorted(pairs) == sorted(work.pairs)
    for schedule in grid.schedules:
        assert all(len(work.windows) == (work.attention if sliding else 0) for work in schedule.works)


def test_all_limits_of_a_label_are_said():
    words = _limits()
    for limit in (*GOOD, *FAIR):
        assert f"{limit:.0%}" in words
