"""Points without a model: every point of a space in order for the `grid` sampler, and independent random ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from autotune.distributions import Choice, Distribution, IntRange
from autotune.space import Point, Space
from autotune.trial import Scalar

LEVELS = 5
"""Values taken of a continuous range, and of a range of whole numbers with more than 16."""
_ENUMERATED = 16


def points(space: Space) -> Iterator[Point]:
    """All points, the last parameter changing fastest; conditions hold because each point is asked for anew."""
    path: list[int] = []
    while True:
        counts: list[int] = []

        def choose(_: str, distribution: Distribution, counts: list[int] = counts) -> Scalar:
            options = values(distribution)
            position = len(counts)
            if position == len(path):
                path.append(0)
            counts.append(len(options))
            return options[path[position]]

        yield space.suggest(choose)
        while path and path[-1] + 1 >= counts[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


def values(distribution: Distribution) -> tuple[Scalar, ...]:
    """The values of one parameter that the grid holds."""
    if isinstance(distribution, Choice):
        return distribution.values
    if isinstance(distribution, IntRange):
        whole = range(distribution.low, distribution.high + 1, distribution.step)
        if len(whole) <= _ENUMERATED:
            return tuple(whole)
        return tuple(sorted({whole[round(share * (len(whole) - 1))] for share in np.linspace(0, 1, LEVELS)}))
    if distribution.step is not None:
        count = int((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
        steps = [distribution.low + index * distribution.step for index in range(count)]
        return tuple(steps[round(share * (count - 1))] for share in np.linspace(0, 1, min(count, LEVELS)))
    spaced = np.geomspace if distribution.log else np.linspace
    return tuple(float(value) for value in spaced(distribution.low, distribution.high, LEVELS))


def draw(space: Space, random: np.random.Generator) -> Point:
    """A random point, uniform in each parameter or in its logarithm."""
    return space.suggest(lambda _, distribution: drawn(distribution, random))


def drawn(distribution: Distribution, random: np.random.Generator) -> Scalar:
    """A random value of one parameter."""
    if isinstance(distribution, Choice):
        return distribution.values[int(random.integers(len(distribution.values)))]
    low, high = distribution.low, distribution.high
    if distribution.log:
        value = float(np.exp(random.uniform(np.log(low), np.log(high))))
        return min(max(round(value), int(low)), int(high)) if isinstance(distribution, IntRange) else value
    if isinstance(distribution, IntRange):
        return distribution.low + distribution.step * int(
            random.integers((distribution.high - distribution.low) // distribution.step + 1)
        )
    if distribution.step is None:
        return float(random.uniform(low, high))
    return low + distribution.step * int(random.integers(int((high - low) / distribution.step + 1e-9) + 1))
