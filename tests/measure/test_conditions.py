"""Spread, clock changes and other load are doubts, in words."""

import pytest
import torch

from harness.measure.conditions import Observer, spread_doubts
from harness.measure.gpu import gpu_state, throttling
from harness.results.conditions import Conditions

QUIET = Conditions(
    threads=1, load_before=0, load_after=0, others_share=0, steal_share=None, throttled=None, governor=None
)


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([[1.0, 1.01, 1.02, 1.0, 0.99]] * 4, []),
        ([[2.0, 2.0]], []),
        ([[1.0, 1.01, 0.99, 1.0, 1.3]] * 4, []),  # one slow round of five leaves the median where it is
        ([[13.2, 27.0, 19.6, 14.0, 25.0]], ["unsteady: the interquartile range of a request's times is 56%"]),
        ([[1.0, 1.2, 0.8, 1.3, 0.9]] * 3 + [[1.0] * 5], ["is 30% of their median"]),
        ([[1.0] * 5] * 11 + [[4.0, 1.0, 1.0, 1.0, 1.0]], []),  # a pause in one of 60 measurements
        ([[1.0] * 5] * 10 + [[1.0] * 4 + [1.6]] * 2, ["2 of 12 requests took more than 1.5 times", "up to 1.6"]),
        ([[1.0] * 5] * 28 + [[1.0] * 4 + [1.6]] * 2, []),
        ([[1.0] * 5] * 27 + [[1.0] * 4 + [1.6]] * 3, ["3 of 30 requests"]),
        ([[1.0, 5.0, 1.0, 3.0, 1.0]] * 2, ["is 200% of", "2 of 2 requests"]),
    ],
)
def test_times_that_vary_from_round_to_round_are_doubted(rounds, words):
    doubts = spread_doubts(rounds)
    assert bool(doubts) == bool(words)
    assert all(word in " ".join(doubts) for word in words)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ""),
        ({"clock_mhz": (3000.0, 2800.0), "gpu_clock_mhz": (1980.0, 1980.0), "gpu_throttled": [], "gpu_others": 0}, ""),
        ({"clock_mhz": (3000.0, 2000.0)}, "the processor ran at 3000 MHz before and 2000 MHz after"),
        ({"clock_mhz": (2000.0, 3000.0)}, "the processor ran at 2000 MHz before and 3000 MHz after"),
        ({"gpu_clock_mhz": (1980.0, 1200.0)}, "the GPU ran at 1980 MHz before and 1200 MHz after"),
        ({"gpu_throttled": ["its power limit"]}, "the GPU was slowed down by its power limit"),
        ({"gpu_others": 2}, "2 other processes computed on it"),
        ({"others_share": 0.2}, "other processes used 20%"),
    ],
)
def test_what_happened_around_timings_is_doubted(state, words):
    doubts = QUIET.model_copy(update=state).doubts()
    assert words in " ".join(doubts)
    assert len(doubts) == bool(words)


def test_the_clock_is_watched_where_it_is_told(monkeypatch):
    clocks = iter((2000.0, 3000.0))
    monkeypatch.setattr("harness.measure.conditions._clock_mhz", lambda: next(clocks))
    seen = Observer(torch.device("cpu")).conditions()
    assert seen.clock_mhz == (2000.0, 3000.0)
    assert any("clock changed" in doubt for doubt in seen.doubts())
    monkeypatch.setattr("harness.measure.conditions._clock_mhz", lambda: None)
    assert Observer().conditions().clock_mhz is None


def test_a_device_that_does_not_tell_has_no_state():
    assert gpu_state(torch.device("cpu")) is None
    assert gpu_state(None) is None
    assert gpu_state(torch.device("cuda:99")) is None


@pytest.mark.parametrize(("mask", "words"), [(0, 0), (0x1, 0), (0x102, 0), (0x4, 1), (0x8 | 0x20, 2), (0x1EC, 5)])
def test_only_slowdowns_are_throttling(mask, words):
    assert len(throttling(mask)) == words
