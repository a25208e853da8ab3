"""Learn then Test keeps its promise on synthetic risks, and its p-values are those of the formula."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binom

from harness.methods.early_exit.learn_then_test import fixed_sequence, hoeffding_bentkus, samples_needed


@pytest.mark.parametrize(("samples", "limit"), [(30, 0.1), (100, 0.05), (200, 0.3)])
def test_p_values_rise_with_the_risk_and_are_one_at_the_limit(samples, limit):
    values = [hoeffding_bentkus(risk, samples, limit) for risk in np.linspace(0, 1, 101)]
    assert values == sorted(values)
    assert all(0 < value <= 1 for value in values)
    assert all(hoeffding_bentkus(risk, samples, limit) == 1 for risk in (limit, limit + 0.01, 1))


@pytest.mark.parametrize(("risk", "samples", "limit"), [(0.0, 50, 0.1), (0.02, 100, 0.1), (0.115, 200, 0.2)])
def test_p_values_are_those_of_the_formula(risk, samples, limit):
    divergence = 0 if not risk else risk * math.log(risk / limit)
    divergence += (1 - risk) * math.log((1 - risk) / (1 - limit))
    bentkus = math.e * binom.cdf(math.ceil(samples * risk), samples, limit)
    assert hoeffding_bentkus(risk, samples, limit) == pytest.approx(min(math.exp(-samples * divergence), bentkus))


def test_a_sum_of_whole_risks_is_not_rounded_up():
    """7 of 100 are 7, although 100 times the mean is 7.000000000000001."""
    assert math.ceil(100 * 0.07) == 8
    bentkus = math.e * binom.cdf(7, 100, 0.2)
    assert hoeffding_bentkus(0.07, 100, 0.2) == pytest.approx(bentkus)


@pytest.mark.parametrize(("limit", "error"), [(0.1, 0.05), (0.01, 0.05), (0.3, 0.2)])
def test_fewer_samples_can_prove_nothing(limit, error):
    needed = samples_needed(limit, error)
    assert hoeffding_bentkus(0, needed, limit) <= error < hoeffding_bentkus(0, needed - 1, limit)


@pytest.mark.parametrize("spread", ["whole", "parts"])
def test_the_promise_is_broken_in_at_most_epsilon_of_the_trials(spread):
    """True risks rise from strict to loose past the limit; samples are 0 or 1, or anything between."""
    thresholds, limit, error, samples = [1 - step / 20 for step in range(20)], 0.1, 0.05, 120
    true = {threshold: 0.25 * (1 - threshold) ** 1.5 for threshold in thresholds}
    generator, broken, found = np.random.default_rng(0), 0, []

    def draw(threshold):
        mean = true[threshold]
        if spread == "whole":
            return generator.binomial(1, mean, samples).tolist()
        return generator.beta(4 * mean + 1e-9, 4 * (1 - mean), samples).tolist()

    for _ in range(1000):
        tested = fixed_sequence(thresholds, draw, limit, error)
        accepted = [each.threshold for each in tested if each.p_value <= error]
        found += accepted[-1:]
        broken += bool(accepted) and true[accepted[-1]] > limit
    assert broken <= error * 1000
    assert len(found) > 900  # the promise is not kept by accepting nothing
    assert min(found) < 0.8


def test_testing_stops_at_the_first_failure():
    asked = []

    def risks(threshold):
        asked.append(threshold)
        return [0.0 if threshold != 0.8 else 1.0] * 50

    tested = fixed_sequence([0.9, 0.8, 0.7], risks, 0.1, 0.05)
    assert asked == [0.9, 0.8] == [each.threshold for each in tested]
    assert [each.p_value <= 0.05 for each in tested] == [True, False]
    assert (tested[0].risk, tested[1].risk) == (0, 1)


def test_all_can_be_accepted():
    tested = fixed_sequence([0.9, 0.5], lambda _: [random.Random(0).random() * 1e-6] * 40, 0.2, 0.05)
    assert all(each.p_value <= 0.05 for each in tested)
