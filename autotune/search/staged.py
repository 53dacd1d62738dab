"""The strategy `staged`: parameters are tuned in groups, one group after the other, each freezing its winner.

It is what practitioners do by hand: everything else stays as the best trial so far has it, while one group is varied.
The winner is the best feasible trial in the study's first objective. After the last group it begins again with the
first. Joint search needs no order and finds interactions between groups; this is here to be compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from autotune.distributions import Distribution
from autotune.search import grid
from autotune.space import Point, Space
from autotune.trial import Scalar

TRIALS = 4
"""Trials of each stage; a lone parameter with fewer new values gives the rest of its trials to the next stage."""
DRAWS = 20
"""Random settings of a group of several parameters to consider before the next group's turn."""


class Stages:
    """The groups of a space, by the sampler's parameter names."""

    def __init__(self, space: Space, groups: Sequence[Sequence[str]]) -> None:
        """`groups` hold engine parameter names; what they leave out, and everything when empty, is a stage of its own in
        the order of the space."""
        self.space = space
        self.groups = [group for engine in space.engines for group in self._of(engine, groups)]

    def group(self, step: int) -> tuple[str, ...]:
        """What the step-th trial after the first ones varies."""
        turn = step % (TRIALS * len(self.groups))
        return self.groups[turn // TRIALS]

    def points(self, step: int, base: Mapping[str, Scalar], random: np.random.Generator) -> Iterator[Point]:
        """Candidates for a step: the base with its group varied, then with the groups that follow, then with everything."""
        turn = step % (TRIALS * len(self.groups)) // TRIALS
        for group in self.groups[turn:] + self.groups[:turn]:
            yield from self._varying(group, base, random)
        while True:
            yield grid.draw(self.space, random)

    def _varying(self, group: tuple[str, ...], base: Mapping[str, Scalar], random: np.random.Generator) -> Iterator[Point]:
        if len(group) == 1:
            for value in self._options(group[0], base):
                yield self._varied(base, {group[0]: value}, random)
            return
        for _ in range(DRAWS):
            yield self._varied(base, dict.fromkeys(group), random)

    def _of(self, engine: str, groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        names = [name for name, _ in self.space.engines[engine].sampled()]
        named = [tuple(name for name in group if name in names) for group in groups]
        rest = [(name,) for name in names if not any(name in group for group in named)]
        return [tuple(self.space.key(engine, name) for name in group) for group in [*named, *rest] if group]

    def _options(self, key: str, base: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        found: dict[str, Distribution] = {}

        def choose(name: str, distribution: Distribution) -> Scalar:
            found[name] = distribution
            return _kept(base.get(name), distribution)

        self.space.suggest(choose)
        return grid.values(found[key]) if key in found else ()

    def _varied(self, base: Mapping[str, Scalar], change: Mapping[str, Scalar], random: np.random.Generator) -> Point:
        """The base with the named parameters set, or drawn where the change says None."""

        def choose(name: str, distribution: Distribution) -> Scalar:
            if name not in change:
                return _kept(base.get(name), distribution)
            value = change[name]
            return grid.drawn(distribution, random) if value is None else value

        return self.space.suggest(choose)


def _kept(value: Scalar, distribution: Distribution) -> Scalar:
    """The base's value, or the middle of a parameter that the base does not have."""
    options = grid.values(distribution)
    return value if value is not None else options[len(options) // 2]
