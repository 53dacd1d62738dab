"""What repeated measurements say: an interval for a value, and for its gain over the default. Pure.

Few configurations are measured more than once, so the noise is pooled over all that are: the within-group variance of
one-way analysis of variance, on logarithms where every value is positive (serving metrics vary in proportion to their
size), else on the values themselves, as for a reward that may be negative. Without a single repeat the noise is unknown, and no
interval is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autotune.pareto import Direction
from autotune.stats import Interval, t_quantile


@dataclass(frozen=True, slots=True)
class Noise:
    """Pooled run-to-run standard deviation with its degrees of freedom; relative when `logarithmic`."""

    deviation: float
    freedom: int
    logarithmic: bool

    def spread(self, *counts: int) -> float:
        """The standard deviation of a mean of `counts[0]` runs, or of the difference of two such means."""
        return self.deviation * math.sqrt(sum(1 / count for count in counts))

    def margin(self, *counts: int) -> float:
        """Half the 95 % interval of such a mean or difference."""
        return t_quantile(0.975, self.freedom) * self.spread(*counts)


@dataclass(frozen=True, slots=True)
class Gain:
    """How a trial compares with the engine's default in one metric, measured in the same study.

    `ratio` is value over default, None where either is not positive. `low` and `high` bound its 95 % interval where the noise is
    relative; where it is not, `margin` is half of the 95 % interval of value less default. All three are None while no
    configuration was measured twice. `runs` counts the measurements behind value and default.
    """

    metric: str
    direction: Direction
    trial: int
    value: float
    default: float
    ratio: float | None
    low: float | None
    high: float | None
    runs: tuple[int, int]
    margin: float | None = None

    @property
    def certain(self) -> bool | None:
        """Whether the 95 % interval excludes the default's value; None when there is no interval."""
        if self.low is not None and self.high is not None:
            return not self.low <= 1 <= self.high
        return None if self.margin is None else abs(self.value - self.default) > self.margin

    @property
    def better(self) -> bool:
        """Whether the value is better than the default's, beyond noise as far as that is known."""
        if self.certain is False:
            return False
        return self.value > self.default if self.direction == "maximize" else self.value < self.default

    def __str__(self) -> str:
        verdict = "" if self.certain else ", within noise"
        apart = f"{self.metric}: {self.value:.4g} against the default's {self.default:.4g}"
        if self.margin is not None:
            more = self.value - self.default
            bounds = f"{more - self.margin:+.4g} to {more + self.margin:+.4g}"
            return f"{apart} ({more:+.4g}, 95 % interval {bounds}{verdict})"
        if self.ratio is None:
            return apart
        text = f"{self.metric}: {self.ratio:.2f} times the default ({self.value:.4g} against {self.default:.4g}"
        if self.low is None or self.high is None:
            return f"{text}; uncertainty unknown, nothing was measured twice)"
        return f"{text}, 95 % interval {self.low:.2f} to {self.high:.2f}{verdict})"


def pooled(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The noise common to groups of repeated measurements; None when no group has two.

    One value below zero, repeated or not, shows that the metric does not vary in proportion to its size.
    """
    known = [list(group) for group in groups]
    repeated = [group for group in known if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if not freedom:
        return None
    logarithmic = all(value > 0 for group in repeated for value in group) and all(value >= 0 for group in known for value in group)
    if logarithmic:
        repeated = [[math.log(value) for value in group] for group in repeated]
    squares = sum((value - mean(group)) ** 2 for group in repeated for value in group)
    return Noise(math.sqrt(squares / freedom), freedom, logarithmic)


def estimate(samples: Sequence[float], noise: Noise | None) -> Interval | None:
    """The mean of a configuration's runs with its 95 % interval; None without an interval. `mean` gives the value alone."""
    centre = mean(samples, noise)
    if noise is None or (noise.logarithmic and centre <= 0):
        return None
    margin = noise.margin(len(samples))
    if noise.logarithmic:
        return Interval(centre, centre * math.exp(-margin), centre * math.exp(margin))
    return Interval(centre, centre - margin, centre + margin)


def mean(samples: Sequence[float], noise: Noise | None = None) -> float:
    """The geometric mean where the noise is relative, else the arithmetic one."""
    if noise is not None and noise.logarithmic and all(value > 0 for value in samples):
        found = math.exp(math.fsum(math.log(value) for value in samples) / len(samples))
    else:
        found = math.fsum(samples) / len(samples)
    # Rounding may leave it beside equal samples, and by its last digit a reserved memory would win over the very same one.
    return min(max(found, min(samples)), max(samples))


def gain(
    metric: str, direction: Direction, trial: int, samples: Sequence[float], default: Sequence[float], noise: Noise | None
) -> Gain:
    """Compare a configuration's runs with the default's."""
    value, base = mean(samples, noise), mean(default, noise)
    ratio = value / base if value > 0 and base > 0 else None
    low = high = None
    runs = len(samples), len(default)
    margin = None if noise is None else noise.margin(*runs)
    if margin is not None and noise is not None and noise.logarithmic:
        if ratio is not None:
            low, high = ratio * math.exp(-margin), ratio * math.exp(margin)
        margin = None
    return Gain(metric, direction, trial, value, base, ratio, low, high, runs, margin)
