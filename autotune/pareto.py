"""Fronts, hypervolume, knee and ties of points with mixed directions. Pure functions over numbers.

A point is one value per objective; `directions` says for each objective whether more or less is better. Points with a
violated constraint and failed trials never come here: the caller leaves them out. Every function raises ValueError on a
value that is not finite or on points whose width is not that of `directions`.

The reference point of the hypervolume
    A hypervolume means nothing without its reference point, so `Reference` travels with the number. It is the nadir, the
    worst value of each objective over the given points, moved outwards by a tenth of that objective's range, so that the
    extremes of the front count. This is BoTorch's `infer_reference_point` (scale 0.1); Ishibuchi et al., "How to Specify a
    Reference Point in Hypervolume Calculation for Fair Performance Comparison", Evolutionary Computation 26(3), 2018, show
    that a point slightly outside the nadir ranks fairly.
    Volumes over trials are comparable only under one reference: compute it once from all trials, then replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autotune.stats import Interval

Direction = Literal["maximize", "minimize"]
Point = Sequence[float]
Losses = NDArray[np.float64]
"""One row a point, one column an objective, all to be minimised."""


@dataclass(frozen=True, slots=True)
class NoisyFront:
    """A front read with its noise: a value of unknown noise has an interval of no width. Numbers are indices into the points given.

    `members` are the non-dominated points by value. `contenders` are dominated by value, but by no point beyond noise:
    measuring again could put them on the front. `ties` names for each of both the members and contenders whose
    intervals overlap with its own in every objective.
    """

    members: tuple[int, ...]
    contenders: tuple[int, ...]
    ties: dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where hypervolume is measured from, in the objectives' own units."""

    values: tuple[float, ...]


def front(points: Sequence[Point], directions: Sequence[Direction]) -> tuple[int, ...]:
    """Indices of the points that no other dominates, in their order; equal points all stay."""
    return _front_of(losses(points, directions))


def joined(members: Sequence[Point], point: Point, directions: Sequence[Direction]) -> tuple[int, ...]:
    """The front of a front's members and one more point, as `front` gives it, at the cost of one comparison with each.

    The point's own index is last where it is on the front.
    """
    table = losses([*members, point], directions)
    known, new = table[:-1], table[-1]
    if np.any(np.all(known <= new, axis=1) & np.any(known < new, axis=1)):
        return tuple(range(len(known)))
    beaten = np.all(new <= known, axis=1) & np.any(new < known, axis=1)
    return (*(int(index) for index in np.flatnonzero(~beaten)), len(known))


def noisy_front(points: Sequence[Sequence[Interval]], directions: Sequence[Direction]) -> NoisyFront:
    """The front of points with intervals, with those that noise may have pushed off it."""
    table = losses([[cell.estimate for cell in point] for point in points], directions)
    members = _front_of(table)
    contenders = tuple(index for index in sorted(set(range(len(points))) - set(members)) if not _beaten(index, points, table))
    shown = members + contenders
    ties = {index: tuple(other for other in shown if other != index and tied(points[index], points[other])) for index in shown}
    return NoisyFront(members, contenders, ties)


def tied(first: Sequence[Interval], second: Sequence[Interval]) -> bool:
    """Whether the intervals of two points overlap in every objective."""
    return all(one.overlaps(other) for one, other in zip(first, second, strict=True))


def knee(points: Sequence[Point], directions: Sequence[Direction]) -> int | None:
    """Index of the front member with the least sum of losses, each objective scaled to its range over the front.

    With two objectives that is the one farthest from the line between the front's extremes, towards the ideal point (Das, "On
    characterizing the knee of the Pareto curve", Structural Optimization 18, 1999). Of several with the same sum the one whose
    worst objective is best. None without points.
    """
    table = losses(points, directions)
    members = _front_of(table)
    if not members:
        return None
    kept = table[list(members)]
    spread = np.ptp(kept, axis=0)
    scaled = (kept - kept.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    order = np.lexsort((scaled.max(axis=1).round(9), scaled.sum(axis=1).round(9)))
    return members[int(order[0])]


def nadir_reference(points: Sequence[Point], directions: Sequence[Direction]) -> Reference:
    """The point slightly outside the nadir of the points.

    An objective without range is moved by a tenth of its size, or by 1 at zero. Raises ValueError without points.
    """
    table = losses(points, directions)
    if not len(table):
        raise ValueError("A reference point needs at least one point.")
    worst, spread = table.max(axis=0), np.ptp(table, axis=0)
    size = np.where(worst == 0, 10.0, np.abs(worst))
    outside = worst + 0.1 * np.where(spread > 0, spread, size)
    return Reference(tuple(float(value) for value in outside * _signs(directions)))


def hypervolume(points: Sequence[Point], directions: Sequence[Direction], reference: Reference) -> float:
    """The volume between the points' front and the reference, in the product of the objectives' units; 0 without points.

    Exact in every dimension: a sweep for one and two objectives, above that the exclusive volumes of While, Bradstreet
    and Barone, "A Fast Way of Calculating Exact Hypervolumes" (WFG), IEEE Trans. Evolutionary Computation 16(1), 2012.
    """
    limit = losses([reference.values], directions)[0]
    table = losses(points, directions)
    return _volume(_pruned(table[np.all(table < limit, axis=1)]), limit)


def added_volume(members: Sequence[Point], point: Point, directions: Sequence[Direction], reference: Reference) -> float:
    """By how much a point raises the hypervolume of a front, at a fraction of what that volume costs from three objectives on."""
    limit = losses([reference.values], directions)[0]
    table = losses([*members, point], directions)
    if not np.all(table[-1] < limit):
        return 0.0
    return max(0.0, _exclusive(table[-1], table[:-1][np.all(table[:-1] < limit, axis=1)], limit))


def hypervolume_history(points: Sequence[Point | None], directions: Sequence[Direction], reference: Reference) -> tuple[float, ...]:
    """Hypervolume after each trial, in order; None stands for a trial without values, which changes nothing."""
    limit = losses([reference.values], directions)[0]
    kept, volume, history = np.empty((0, len(directions))), 0.0, []
    for point in points:
        if point is not None:
            row = losses([point], directions)
            if np.all(row < limit) and not np.any(np.all(kept <= row, axis=1)):
                kept = _pruned(np.vstack([kept, row]))
                volume = _volume(kept, limit)
        history.append(volume)
    return tuple(history)


def losses(points: Sequence[Point], directions: Sequence[Direction]) -> Losses:
    """The points as an array in which less is better everywhere."""
    if not len(points):
        return np.empty((0, len(directions)))
    table = np.asarray([tuple(point) for point in points], dtype=float)
    if table.shape[1] != len(directions):
        raise ValueError(f"Every point needs {len(directions)} values, one per objective.")
    if not np.isfinite(table).all():
        raise ValueError("A point holds a value that is not finite.")
    return table * _signs(directions)


def _signs(directions: Sequence[Direction]) -> Losses:
    return np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])


def _front_of(table: Losses) -> tuple[int, ...]:
    beaten = [bool(np.any(np.all(table <= row, axis=1) & np.any(table < row, axis=1))) for row in table]
    return tuple(index for index, lost in enumerate(beaten) if not lost)


def _pruned(table: Losses) -> Losses:
    """The front without duplicates."""
    unique = np.unique(table, axis=0) if len(table) else table
    return unique[list(_front_of(unique))]


def _beaten(index: int, points: Sequence[Sequence[Interval]], table: Losses) -> bool:
    """Whether a point dominates this one by value, with at least one objective in which the intervals do not overlap.

    Being part of domination the relation has no cycles, which interval comparison alone has from three objectives on.
    """
    row = table[index]
    better = np.flatnonzero(np.all(table <= row, axis=1) & np.any(table < row, axis=1))
    return not all(tied(points[other], points[index]) for other in better)


def _volume(table: Losses, limit: Losses) -> float:
    """Volume of a front without duplicates, all of it inside the limit."""
    if not len(table):
        return 0.0
    if len(limit) == 1:
        return float(limit[0] - table[:, 0].min())
    if len(limit) == 2:
        return _area(table, limit)
    ordered = table[np.argsort(-table[:, 0])]
    return sum(_exclusive(ordered[index], ordered[index + 1 :], limit) for index in range(len(ordered)))


def _area(table: Losses, limit: Losses) -> float:
    ordered = table[np.argsort(table[:, 0])]
    ceilings = np.concatenate([limit[1:2], ordered[:-1, 1]])
    return float(np.sum((limit[0] - ordered[:, 0]) * (ceilings - ordered[:, 1])))


def _exclusive(row: Losses, others: Losses, limit: Losses) -> float:
    """The volume that `row` covers and none of `others` does."""
    alone = float(np.prod(limit - row))
    return alone - _volume(_pruned(np.maximum(others, row)), limit) if len(others) else alone
