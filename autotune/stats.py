"""Percentiles, intervals and tests over plain numbers. Pure: the same numbers give the same answer, bootstrap included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided confidence interval."""

    estimate: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


def percentile(values: Numbers, q: float) -> float:
    """The q-th percentile (0 to 100), linearly interpolated as `numpy.percentile` does. Raises ValueError when empty."""
    if len(values) == 0:
        raise ValueError("A percentile needs at least one value.")
    return float(np.percentile(np.asarray(values, dtype=float), q))


def describe(values: Numbers) -> dict[str, float]:
    """The statistics of the metric table (mean, p50, p90, p95, p99) over pooled values. Raises ValueError when empty."""
    if len(values) == 0:
        raise ValueError("Statistics need at least one value.")
    array = np.asarray(values, dtype=float)
    p50, p90, p95, p99 = np.percentile(array, (50, 90, 95, 99))
    return {"mean": float(array.mean()), "p50": float(p50), "p90": float(p90), "p95": float(p95), "p99": float(p99)}


def coefficient_of_variation(values: Numbers) -> float:
    """Sample standard deviation over the mean. Raises ValueError with fewer than two values or a mean of zero."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or array.mean() == 0:
        raise ValueError("A coefficient of variation needs two values or more with a mean other than zero.")
    return float(array.std(ddof=1) / abs(array.mean()))


def bootstrap_interval(
    values: Numbers,
    statistic: Callable[[np.ndarray], float],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic over independent values. Raises ValueError when empty."""
    array = np.asarray(values, dtype=float)
    if len(array) == 0:
        raise ValueError("A bootstrap needs at least one value.")
    draw = np.random.default_rng(seed)
    estimates = [statistic(array[draw.integers(0, len(array), len(array))]) for _ in range(resamples)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(estimates, (tail, 100 - tail))
    return Interval(float(statistic(array)), float(low), float(high))


def t_tail(t: float, degrees: float) -> float:
    """Two-sided tail probability of Student's t: I_x(v/2, 1/2) with x = v / (v + t^2) (Abramowitz and Stegun 26.7.1)."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


@lru_cache(maxsize=1024)
def t_quantile(probability: float, degrees: float) -> float:
    """The value that Student's t stays below with a probability in (0, 1), by bisection of its tail."""
    if not 0 < probability < 1:
        raise ValueError("A quantile's probability lies between 0 and 1.")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    tail, low, high = 2 * (1 - probability), 0.0, 1.0
    while t_tail(high, degrees) > tail:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def isotonic(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted least squares, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (left, left_weight, left_count), (right, right_weight, right_count) = blocks[-2:]
            total = left_weight + right_weight
            blocks[-2:] = [((left * left_weight + right * right_weight) / total, total, left_count + right_count)]
    return [value for value, _, count in blocks for _ in range(count)]


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function by Lentz's continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
