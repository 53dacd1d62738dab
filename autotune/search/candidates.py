"""Where the points come from that are considered for a trial: a grid, the stages, the prior, a sampler, chance.

What is drawn depends on the search's seed, the trial's number and what is known when it is asked, on nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np

from autotune.search import grid, samplers
from autotune.search.history import History
from autotune.search.prior import Begun
from autotune.search.staged import Stages
from autotune.space import Point, Space
from autotune.study import Search
from autotune.trial import Configuration, Scalar

REASKS = 4
"""Proposals taken from the sampler before random ones are tried, when each is a duplicate or is cut."""
RANDOM_REASKS = 200
PRIOR_POOL = 128
"""Random candidates among which the prior picks one; every third trial of the random start stays without it."""
PRIOR_MEMORY = 64
"""The latest trials that the prior is told of."""

Prior = Callable[[Sequence[Configuration], Sequence[Begun]], int | None]
"""Which of a few random candidates is the most promising beside what was begun already; None when it cannot say."""


class Candidates:
    """Points of a space to consider, each with the number of its attempt."""

    def __init__(
        self, space: Space, search: Search, history: History, prior: Prior | None, allowed: Callable[[Configuration], bool]
    ) -> None:
        """`allowed` says what is not cut before a launch."""
        self._space, self._search, self._history, self._prior, self._allowed = space, search, history, prior, allowed
        self._stages = Stages(space, search.stages) if search.strategy == "staged" else None
        self._grid: Iterator[Point] = grid.points(space)

    def points(
        self, number: int, named: Sequence[Point | None], begun: Mapping[int, Begun], cut: Container[str]
    ) -> Iterator[tuple[int, Point]]:
        """Candidates for a trial in turn; a later one sees the cuts of the earlier, whose digests appear in `cut`.

        `named` are the points of the trials before the search proper, the first engine's default in front.
        """
        if self._search.sampler == "grid":
            yield from enumerate(self._grid)
            return
        if self._stages is not None:
            base = self._history.winner() or named[0] or {}
            points = self._stages.points(number - len(named), base, self.random(number, "staged"))
            yield from enumerate(itertools.islice(points, RANDOM_REASKS))
            return
        if number < self._search.startup_trials or not self._history.measured or self._search.sampler == "random":
            if self._prior is not None and number % 3:
                yield 0, self._promising(self._prior, number, begun)
        else:
            yield from self._sampled(number, cut)
        random = self.random(number, "random")
        for attempt in range(REASKS, REASKS + RANDOM_REASKS):
            yield attempt, grid.draw(self._space, random)

    def random(self, *parts: Scalar) -> np.random.Generator:
        """Chance of its own for what the parts name."""
        return np.random.default_rng(self._seed(*parts))

    def _sampled(self, number: int, cut: Container[str]) -> Iterator[tuple[int, Point]]:
        seed = self._seed(number, "sampler")
        sampler = samplers.build(self._search.sampler, seed, self._search.options, self._history.conditional)
        history = self._history.trials(impute=not samplers.reads_pruned(sampler))
        conversation = samplers.Conversation(sampler, history, self._history.directions, self._space)
        for attempt in range(REASKS):
            point = conversation.ask()
            yield attempt, point
            if self._space.decode(point).digest in cut:
                conversation.reject(self._history.violated())

    def _promising(self, prior: Prior, number: int, begun: Mapping[int, Begun]) -> Point:
        """The one of some random points that the prior likes best."""
        random = self.random(number, "prior")
        pool = [grid.draw(self._space, random) for _ in range(PRIOR_POOL)]
        allowed = [point for point in pool if self._allowed(self._space.decode(point))] or pool
        latest = [begun[one] for one in sorted(begun)[-PRIOR_MEMORY:] if one < number]
        return allowed[prior([self._space.decode(point) for point in allowed], latest) or 0]

    def _seed(self, *parts: Scalar) -> int:
        text = ":".join(map(str, (self._search.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (2**31)
