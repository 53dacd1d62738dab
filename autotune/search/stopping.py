"""When more trials are not worth their GPU-minutes: the plateau rule, and what the next trial may bring."""

from __future__ import annotations

from collections.abc import Sequence

from autotune import pareto
from autotune.score import Score

SETTLED = 10
"""Feasible trials from which the reference point is taken."""
GROWTH = 0.01
"""Growth of the hypervolume over the last trials, relative to what there is, below which a search counts as flat."""
MEMORY = 10
"""Trials over which the recent growth is averaged."""


class Growth:
    """The hypervolume after each trial, kept up at the cost of the front's size.

    The reference is the nadir of the first ten feasible trials, then fixed: volumes under different references cannot be
    compared, and computing all of them anew at every trial would make the ten-thousandth one slow.
    """

    def __init__(self, directions: Sequence[pareto.Direction]) -> None:
        self.directions = tuple(directions)
        self.volumes: list[float] = []
        self._early: list[tuple[float, ...] | None] = []
        self._feasible = 0
        self._reference: pareto.Reference | None = None
        self._front: list[tuple[float, ...]] = []
        self._volume = 0.0

    def add(self, found: Score | None) -> None:
        """Take the next trial; None for one that failed."""
        point = found.values if found is not None and found.feasible else None
        settled = self._feasible >= SETTLED
        if not settled:
            self._early.append(point)
            self._feasible += point is not None
        if settled or point is None:
            self.volumes.append(self._with(point))
        else:
            self._anew()

    def _anew(self) -> None:
        known = [point for point in self._early if point is not None]
        self._front, self._volume = [], 0.0
        self._reference = pareto.nadir_reference(known, self.directions)
        self.volumes = [self._with(point) for point in self._early]

    def _with(self, point: tuple[float, ...] | None) -> float:
        if point is None or self._reference is None:
            return self._volume
        points = [*self._front, point]
        kept = pareto.joined(self._front, point, self.directions)
        if kept[-1] == len(self._front):
            self._volume += pareto.added_volume(self._front, point, self.directions, self._reference)
            self._front = [points[index] for index in kept]
        return self._volume


def flat(volumes: Sequence[float], trials: int) -> bool:
    """Whether the hypervolume grew by less than 1 % over the last `trials`; 0 trials never is, nor is an empty front."""
    if not trials or len(volumes) <= trials or volumes[-1] <= 0:
        return False
    return volumes[-1 - trials] >= volumes[-1] * (1 - GROWTH)


def next_gain(volumes: Sequence[float]) -> float | None:
    """Expected relative growth of the hypervolume by the next trial, from the last ones; None before there is a front.

    Improvements of a search that samples at random come as 1 / trials (the record statistics of independent draws), so
    the mean of the last trials is scaled by how much rarer they have become: half a window later on average.
    """
    recent = volumes[-MEMORY - 1 :]
    if len(recent) < 3 or volumes[-1] <= 0:
        return None
    steps = len(recent) - 1
    mean = (recent[-1] - recent[0]) / steps
    return mean / volumes[-1] * (1 - steps / (2 * len(volumes)))
