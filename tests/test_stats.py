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


def test_t_tail_is_scipys():
    scipy_stats = pytest.importorskip("scipy.stats")
    for t, degrees in itertools.product((-30.0, -2.1, 0.0, 0.3, 4.0), (0.5, 1, 7.3, 500)):
        assert stats.t_tail(t, degrees) == pytest.approx(2 * scipy_stats.t.sf(abs(t), degrees), rel=1e-8, abs=1e-300)


@given(SAMPLES, st.floats(0, 100))
def test_percentile_is_numpys(values, q):
    assert stats.percentile(values, q) == np.percentile(values, q)


@given(SAMPLES)
def test_describe_is_ordered_and_within_range(values):
    found = stats.describe(values)
    assert min(values) <= found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= max(values)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_isotonic_never_falls_and_keeps_the_mean(values):
    smooth = stats.isotonic(values)
    assert all(left <= right for left, right in itertools.pairwise(smooth))
    assert math.fsum(smooth) == pytest.approx(math.fsum(values), abs=1e-3)


def test_isotonic_leaves_a_rising_sequence_alone():
    assert stats.isotonic([1.0, 2.0, 5.0]) == [1.0, 2.0, 5.0]
    assert stats.isotonic([3.0, 1.0]) == [2.0, 2.0]


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
        lambda: stats.coefficient_of_variation([1.0]),
        lambda: stats.coefficient_of_variation([1.0, -1.0]),
        lambda: stats.bootstrap_interval([], np.median),
        lambda: stats.t_quantile(1.0, 3),
    ],
)
def test_too_little_to_say_is_an_error(call):
    with pytest.raises(ValueError, match=r"\w"):
        call()
