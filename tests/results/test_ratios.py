"""A ratio is a positive, finite number, or it is not there and the record says why."""

import math
from types import SimpleNamespace

import pytest

from harness.results.ratios import modelled, without_ratio

KEYS = [("t", number, "d") for number in range(12)]


def record(seconds):
    ideal = SimpleNamespace(profile="p", ref_s=seconds, own_s=seconds, requests_s=seconds)
    bound = SimpleNamespace(seconds=seconds)
    evaluation = SimpleNamespace(score_mode="lm-eval")
    return SimpleNamespace(time=SimpleNamespace(ideal=ideal, roofline={"l4": bound}), evaluation=evaluation)


def lines(seconds):
    request = {"prompt_tokens": 9, "new_tokens": 0, "ideal_s": seconds, "run": {"latency": [1.0]}}
    return {key: {"ideal_s": seconds, "requests": [request]} for key in KEYS}


NAMES = {"ideal_ref", "ideal_own", "ideal_requests"}


@pytest.mark.parametrize("method", [-1e-3, 0.0])
@pytest.mark.parametrize("dense", [-2e-3, 0.0, 1.0])
def test_seconds_that_are_not_positive_have_no_ratio(dense, method):
    ratios = modelled(record(dense), record(method), KEYS, lines(dense), lines(method))
    assert not ratios
    reasons = without_ratio(record(method), SimpleNamespace(ratios=ratios), record(dense))
    assert reasons.keys() == {f"baseline.ratios.{name}" for name in NAMES}


def test_positive_seconds_have_one():
    ratios = modelled(record(2.0), record(1.0), KEYS, lines(2.0), lines(1.0))
    assert ratios.keys() == NAMES | {"roofline:l4"}
    assert all(math.isfinite(ratio.value) and ratio.value == pytest.approx(0.5) for ratio in ratios.values())
    assert without_ratio(record(1.0), SimpleNamespace(ratios=ratios), record(2.0)) == {}
