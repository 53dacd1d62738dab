"""Intervals cover what they promise, and nothing is claimed where noise was not measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import estimates

POSITIVE = st.floats(0.01, 1e6)


def test_without_a_repeat_there_is_no_noise_and_no_interval():
    assert estimates.pooled([[1.0], [2.0], []]) is None
    assert estimates.estimate([3.0], None) is None
    found = estimates.gain("sps", "maximize", 4, [3.0], [2.0], None)
    assert (found.ratio, found.low, found.high, found.certain) == (1.5, None, None, None)


def test_noise_is_the_pooled_deviation_of_logarithms():
    noise = estimates.pooled([[1.0, math.e], [5.0, 5.0], [9.0]])
    assert noise.freedom == 2
    assert noise.deviation == pytest.approx(math.sqrt(0.5 / 2))
    assert noise.logarithmic


@given(POSITIVE, st.integers(1, 9), st.booleans())
def test_equal_runs_have_themselves_as_mean_to_the_last_digit(value, runs, relative):
    noise = estimates.Noise(0.0, 3, relative)
    assert estimates.mean([value] * runs, noise) == value
    assert estimates.pooled([[value] * runs, [value] * 2]) == estimates.Noise(0.0, runs, True)


def test_values_of_either_sign_are_compared_as_they_are():
    noise = estimates.pooled([[-1.0, 1.0], [0.0, 0.0]])
    assert not noise.logarithmic
    cell = estimates.estimate([-1.0, 1.0], noise)
    assert cell.low < cell.estimate == 0.0 < cell.high
    assert estimates.gain("kl", "minimize", 1, [0.0], [0.5], noise).ratio is None


def test_one_value_below_zero_shows_that_noise_is_no_share_of_a_size():
    noise = estimates.pooled([[0.5, 0.6], [-0.1]])
    assert not noise.logarithmic
    cell = estimates.estimate([-0.1], noise)
    assert cell.low < -0.1 < cell.high
    assert estimates.pooled([[5.0, 6.0], [0.0]]).logarithmic, "nothing served is no reward below zero"


def test_without_a_ratio_the_interval_is_that_of_the_difference():
    found = estimates.gain("reward", "maximize", 1, [-0.2], [-0.9, -0.8], estimates.pooled([[-0.9, -0.8]]))
    assert (found.ratio, found.low, found.certain, found.better) == (None, None, False, False)
    assert str(found) == ("reward: -0.2 against the default's -0.85 (+0.65, 95 % interval -0.4504 to +1.75, within noise)")
    unknown = estimates.gain("reward", "maximize", 1, [-0.2], [-0.9], None)
    assert unknown.certain is None and unknown.better


def test_the_interval_of_a_difference_covers_the_truth_19_times_in_20():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(2000):
        default, winner = rng.normal(-0.5, 0.1, 4).tolist(), rng.normal(0.2, 0.1, 3).tolist()
        found = estimates.gain("reward", "maximize", 1, winner, default, estimates.pooled([default, winner]))
        covered += abs(found.value - found.default - 0.7) <= found.margin
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@given(st.lists(st.lists(POSITIVE, min_size=1, max_size=4), min_size=1, max_size=5), st.floats(0.1, 100))
def test_a_change_of_unit_changes_no_ratio(groups, unit):
    noise, scaled = estimates.pooled(groups), estimates.pooled([[value * unit for value in group] for group in groups])
    one = estimates.gain("sps", "maximize", 1, groups[0], groups[-1], noise)
    other = estimates.gain("sps", "maximize", 1, [v * unit for v in groups[0]], [v * unit for v in groups[-1]], scaled)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-6)
    if one.low is not None:
        assert one.low <= one.ratio <= one.high
        assert other.low == pytest.approx(one.low, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_interval_of_a_ratio_covers_the_truth_19_times_in_20(runs):
    """2,000 studies: five configurations, the default measured four times, 5 % noise; binomial bounds at 4 sigma."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        default = (100 * np.exp(rng.normal(0, 0.05, 4))).tolist()
        winner = (130 * np.exp(rng.normal(0, 0.05, runs))).tolist()
        found = estimates.gain("sps", "maximize", 1, winner, default, estimates.pooled([default, winner]))
        covered += found.low <= 1.3 <= found.high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_equal_configurations_are_seldom_called_different():
    rng, called = np.random.default_rng(2), 0
    for _ in range(2000):
        one, other = (np.exp(rng.normal(0, 0.1, (2, 3)))).tolist()
        called += bool(estimates.gain("sps", "maximize", 1, one, other, estimates.pooled([one, other])).certain)
    assert called / 2000 < 0.07


def test_the_sentence_says_what_is_within_noise():
    noise = estimates.pooled([[95.0, 105.0]])
    assert "within noise" in str(estimates.gain("sps", "maximize", 1, [101.0], [100.0], noise))
    assert "95 % interval" in str(estimates.gain("sps", "maximize", 1, [900.0], [100.0], noise))
