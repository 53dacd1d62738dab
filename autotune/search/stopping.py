"""When more trials are not worth their GPU-minutes: the plateau rule, and what the next trial may bring."""

from __future__ import annotations

from collections.abc import Sequence

from autotune import pareto
from autotune.score import Score

GROWTH = 0.01
"""Growth of the hypervolume over the last trials, relative to what there is, below which a search counts as flat."""
MEMORY = 10
"""Trials over which the recent growth is averaged."""


def volumes(scores: Sequence[Score | None], directions: Sequence[pareto.Direction]) -> tuple[float, ...]:
    """Hypervolume of the feasible trials after each trial, in order; None stands for a failed one."""
    points = [found.values if found is not None and found.feasible else None for found in scores]
    known = [point for point in points if point is not None]
    if not known:
        return tuple(0.0 for _ in points)
    return pareto.hypervolume_history(points, directions, pareto.nadir_reference(known, directions))


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
