import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import stats

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
SAMPLES = st.lists(FLOATS, min_size=2, max_size=40)


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    # Tables of Student's t.
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 10, 2.22814), (0.995, 5, 4.03214), (0.95, 30, 1.69726)],
)
def test_t_quantile_agrees_with_the_tables(probability, degrees, expected):
    assert stats.t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-4)
    assert stats.t_quantile(1 - probability, degrees) == pytest.approx(-expected, rel=1e-4)


def test_welch_agrees_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = [3.1, 2.7, 3.9, 3.3], [2.2, 2.9, 2.1, 2.5, 2.4]
    ours, theirs = stats.welch(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.degrees == pytest.approx(theirs.df)
    interval = theirs.confidence_interval(0.95)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((interval.low, interval.high))


def test_welch_without_spread():
    assert stats.welch([1, 1], [2, 2]).p == 0
    assert stats.welch([1, 1], [1, 1]).p == 1


@given(SAMPLES, st.floats(0, 100))
def test_percentile_is_numpys(values, q):
    assert stats.percentile(values, q) == np.percentile(values, q)


@given(SAMPLES)
def test_describe_is_ordered_and_within_range(values):
    found = stats.describe(values)
    assert min(values) <= found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= max(values)


@given(SAMPLES)
def test_mean_interval_holds_its_mean(values):
    interval = stats.mean_interval(values)
    assert interval.low <= interval.estimate <= interval.high


@given(SAMPLES, SAMPLES)
def test_welch_is_antisymmetric(a, b):
    there, back = stats.welch(a, b), stats.welch(b, a)
    assert there.p == pytest.approx(back.p)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert 0 <= there.p <= 1


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_isotonic_never_falls_and_keeps_the_mean(values):
    smooth = stats.isotonic(values)
    assert all(left <= right for left, right in itertools.pairwise(smooth))
    assert math.fsum(smooth) == pytest.approx(math.fsum(values), abs=1e-3)


def test_isotonic_leaves_a_rising_sequence_alone():
    assert stats.isotonic([1.0, 2.0, 5.0]) == [1.0, 2.0, 5.0]
    assert stats.isotonic([3.0, 1.0]) == [2.0, 2.0]


def test_mean_interval_covers_the_truth_at_its_rate():
    draw = np.random.default_rng(1)
    hits = sum(interval.low <= 5 <= interval.high for interval in (stats.mean_interval(draw.normal(5, 2, 6)) for _ in range(2000)))
    assert 0.93 < hits / 2000 < 0.97


def test_bootstrap_is_repeatable_and_covers():
    values = np.random.default_rng(2).exponential(1, 200)
    first = stats.bootstrap_interval(values, np.median, seed=3, resamples=300)
    assert first == stats.bootstrap_interval(values, np.median, seed=3, resamples=300)
    assert first.low < math.log(2) < first.high


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.percentile([], 50),
        lambda: stats.describe([]),
        lambda: stats.mean_interval([1.0]),
        lambda: stats.coefficient_of_variation([1.0]),
        lambda: stats.coefficient_of_variation([1.0, -1.0]),
        lambda: stats.welch([1.0], [1.0, 2.0]),
        lambda: stats.bootstrap_interval([], np.median),
        lambda: stats.t_quantile(1.0, 3),
    ],
)
def test_too_little_to_say_is_an_error(call):
    with pytest.raises(ValueError, match=r"\w"):
        call()
