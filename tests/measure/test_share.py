"""The share of its machine's roofline that a run reached, and whether launching is why it is no more."""

from types import SimpleNamespace

import pytest

from harness.cli.summary import _reached
from harness.measure.accelerators import HOST, Accelerator
from harness.measure.profile import LinearCosts
from harness.measure.roofline import roofline
from harness.measure.segment import unpadded
from harness.measure.shape import ModelShape
from harness.results.costs import Ideal, RooflineInfo
from harness.run.modelled import checked, with_share
from harness.testing.tiny import tiny_decoder
from tests.measure.test_ideal import PREFILL, PROFILE

LAYERS = 4
MACHINE = Accelerator(name=HOST, peaks={"float32": 1e12}, bandwidth=1e11, source="measured here")
BOUND = RooflineInfo(seconds=2e-4, dtype="float32", parts={}, peaks_source="measured here", peak=1e12, bandwidth=1e11)
IDEAL = Ideal(
    profile="k", label="good", clock="cuda_events", fit_error=0, held_out_error=0, ref_s=4e-3, own_s=None, parts={},
    growth=1.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def shape():
    return ModelShape.of(tiny_decoder("llama", layers=LAYERS))


@pytest.fixture
def requests(shape, dense_segment):
    """Three requests that took 20, 25 and 50 times their bound."""
    made = []
    for tokens, times in ((10, 20), (20, 25), (30, 50)):
        segment = dense_segment(LAYERS, tokens, phase="score", head=1)
        least = roofline(shape, unpadded([segment]), MACHINE, "float32").total
        run = {"latency": [times * least, 0.9 * times * least, 1.1 * times * least]}
        made.append({"prompt_tokens": tokens, "new_tokens": 0, "segments": [segment.to_json()], "run": run})
    return made


def share(shape, requests, device, modelled=IDEAL, bound=BOUND):
    bounds = checked({HOST: bound, "l4": bound}, requests, shape) if requests else {HOST: bound, "l4": bound}
    sections = with_share(bounds, modelled, requests, shape, device)
    assert sections["l4"] == bound
    return sections[HOST]


def test_it_is_that_of_the_measured_requests(shape, requests):
    section = share(shape, requests, "cuda:0")
    assert section.share == pytest.approx(1 / 25)
    assert section.share_of == "measured"
    assert section.launch_bound is True


def test_without_measured_requests_idealized_time_says_it(shape):
    section = share(shape, [], "cuda:0")
    assert (section.share, section.share_of) == (pytest.approx(0.05), "idealized")
    assert share(shape, [], "cuda:0", None).share is None


@pytest.mark.parametrize(
    ("device", "growth", "ref_s", "bound"),
    [
        ("cuda:0", 1.02, 4e-3, True),
        ("cuda:0", 8.0, 4e-3, False),  # slow, but time falls with the work
        ("cuda:0", 1.02, 4e-4, False),  # weights are read at half of the bandwidth
        ("cuda:0", None, 4e-3, None),  # an older record
        ("mps", 1.02, 4e-3, True),
        ("cpu", 1.02, 4e-3, None),
    ],
)
def test_launching_is_the_reason_where_time_does_not_fall_with_the_work(shape, device, growth, ref_s, bound):
    modelled = IDEAL.model_copy(update={"growth": growth, "ref_s": ref_s})
    assert share(shape, [], device, modelled).launch_bound is bound


def test_of_what_is_no_bound_there_is_no_share(shape, requests):
    for request in requests:
        request["run"]["latency"] = [seconds / 100 for seconds in request["run"]["latency"]]
    section = share(shape, requests, "cuda:0")
    assert section.doubts
    assert (section.share, section.share_of, section.launch_bound) == (None, None, None)
    untraced = [{name: value for name, value in request.items() if name != "segments"} for request in requests]
    assert share(shape, untraced, "cuda:0").share is None


def test_a_profile_says_whether_time_grows_with_the_work():
    grown = PROFILE.growth
    assert grown > 1
    flat = PREFILL.model_copy(
        update=dict.fromkeys(("fixed_token", "attention_token", "attention_pair", "mlp_token"), 0)
    )
    assert PROFILE.model_copy(update={"prefill": flat}).growth == pytest.approx(1)
    steep = LinearCosts(**{**flat.model_dump(), "fixed": 0, "attention": 0, "mlp": 0, "mlp_token": 1e-6})
    assert PROFILE.model_copy(update={"prefill": steep}).growth == pytest.approx(64)
    assert PROFILE.model_copy(update={"prefill": steep, "longest": 16}).growth == pytest.approx(16)


LAUNCHES = "launch-bound: 5% of the roofline (measured time, a card): single requests take the time of launching work, "


@pytest.mark.parametrize(
    ("device", "launch_bound", "said"),
    [
        ("cuda:0", True, [f"{LAUNCHES}not of doing it"]),
        ("cuda:0", False, ["reached 5% of the roofline (measured time, a card)"]),
        ("cpu", None, []),
    ],
)
def test_it_is_said_of_a_gpu_alone(device, launch_bound, said):
    bound = BOUND.model_copy(update={"share": 0.05, "share_of": "measured", "launch_bound": launch_bound})
    environment = SimpleNamespace(device=device, device_name="a card")
    record = SimpleNamespace(time=SimpleNamespace(roofline={HOST: bound}), environment=environment)
    assert list(_reached(record)) == said
    record.time.roofline[HOST] = BOUND
    assert list(_reached(record)) == []
