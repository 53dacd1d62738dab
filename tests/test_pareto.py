"""Fronts, hypervolume, knee and ties against brute force and against Optuna's own hypervolume."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from autotune import pareto
from autotune.pareto import Reference
from autotune.stats import Interval

SIDES = st.sampled_from(["maximize", "minimize"])
SMALL = st.integers(0, 6).map(float)
WIDE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def tables(draw, cells=SMALL, most=12, widest=4):
    """Points and directions; small integers make ties and duplicates common."""
    width = draw(st.integers(1, widest))
    directions = draw(st.lists(SIDES, min_size=width, max_size=width))
    points = draw(st.lists(st.tuples(*[cells] * width), max_size=most))
    return points, directions


def naive_dominates(first, second, directions):
    better = [a > b if side == "maximize" else a < b for a, b, side in zip(first, second, directions, strict=True)]
    worse = [a < b if side == "maximize" else a > b for a, b, side in zip(first, second, directions, strict=True)]
    return any(better) and not any(worse)


def inclusion_exclusion(points, limit):
    """Volume of the union of boxes, to be minimised, by inclusion-exclusion."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            corner = np.max(np.array(chosen), axis=0)
            total += (-1) ** (size + 1) * float(np.prod(np.maximum(np.array(limit) - corner, 0.0)))
    return total


@given(tables())
def test_front_is_what_nothing_dominates(table):
    points, directions = table
    expected = tuple(i for i, p in enumerate(points) if not any(naive_dominates(q, p, directions) for q in points))
    assert pareto.front(points, directions) == expected


@given(tables())
def test_a_front_that_takes_one_point_after_the_other_is_that_of_all_of_them(table):
    points, directions = table
    kept: list[int] = []
    for index, point in enumerate(points):
        candidates = [*kept, index]
        kept = [candidates[place] for place in pareto.joined([points[one] for one in kept], point, directions)]
    assert tuple(kept) == pareto.front(points, directions)


@given(tables())
def test_the_volume_that_a_point_adds_is_the_difference_of_two_hypervolumes(table):
    points, directions = table
    reference = Reference(tuple(5.0 if side == "minimize" else 1.0 for side in directions))
    for index, point in enumerate(points):
        before = [points[one] for one in pareto.front(points[:index], directions)]
        expected = pareto.hypervolume([*before, point], directions, reference) - pareto.hypervolume(before, directions, reference)
        assert pareto.added_volume(before, point, directions, reference) == pytest.approx(expected, abs=1e-9)


@given(tables(most=7))
def test_hypervolume_equals_inclusion_exclusion(table):
    points, directions = table
    reference = Reference(tuple(5.0 if side == "minimize" else 1.0 for side in directions))
    signs = [1 if side == "minimize" else -1 for side in directions]
    flipped = [tuple(s * v for s, v in zip(signs, p, strict=True)) for p in points]
    limit = [s * v for s, v in zip(signs, reference.values, strict=True)]
    assert pareto.hypervolume(points, directions, reference) == pytest.approx(inclusion_exclusion(flipped, limit))


@given(tables(cells=WIDE, most=25, widest=5).filter(lambda table: len(table[0]) > 0))
def test_hypervolume_equals_optunas(table):
    points, directions = table
    reference = pareto.nadir_reference(points, directions)
    signs = np.array([1.0 if side == "minimize" else -1.0 for side in directions])
    theirs = compute_hypervolume(np.array(points) * signs, np.array(reference.values) * signs)
    assert pareto.hypervolume(points, directions, reference) == pytest.approx(theirs, rel=1e-9)


@given(tables(most=10).filter(lambda table: len(table[0]) > 0), st.data())
def test_history_ends_at_the_hypervolume_never_falls_and_skips_the_missing(table, data):
    points, directions = table
    reference = pareto.nadir_reference(points, directions)
    gaps = [data.draw(st.booleans()) for _ in points]
    replayed = [None if gap else point for gap, point in zip(gaps, points, strict=True)]
    history = pareto.hypervolume_history(replayed, directions, reference)
    known = [point for point in replayed if point is not None]
    assert len(history) == len(points)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(history))
    assert history[-1] == pytest.approx(pareto.hypervolume(known, directions, reference))


@given(tables().filter(lambda table: len(table[0]) > 0), st.permutations(range(12)))
def test_order_of_points_changes_neither_volume_nor_front(table, order):
    points, directions = table
    shuffled = [points[i] for i in order if i < len(points)]
    reference = pareto.nadir_reference(points, directions)
    volume = pareto.hypervolume(points, directions, reference)
    assert pareto.hypervolume(shuffled, directions, reference) == pytest.approx(volume)
    assert {shuffled[i] for i in pareto.front(shuffled, directions)} == {points[i] for i in pareto.front(points, directions)}


@given(tables().filter(lambda table: len(table[0]) > 0))
def test_every_point_lies_strictly_inside_the_nadir_reference(table):
    points, directions = table
    reference = pareto.nadir_reference(points, directions)
    assert all(naive_dominates(point, reference.values, directions) for point in points)
    assert pareto.hypervolume(points, directions, reference) > 0


@given(tables(cells=WIDE).filter(lambda table: len(table[0]) > 0))
def test_knee_is_a_front_member(table):
    points, directions = table
    assert pareto.knee(points, directions) in pareto.front(points, directions)


def test_knee_of_a_bent_front_is_its_bend():
    points = [(1.0, 10.0), (2.0, 3.0), (10.0, 1.0), (9.0, 9.0)]
    assert pareto.knee(points, ["minimize", "minimize"]) == 1
    assert pareto.knee([(-a, b) for a, b in points], ["maximize", "minimize"]) == 1


def test_knee_is_the_member_farthest_from_the_line_between_the_extremes():
    x = np.sort(np.random.default_rng(7).uniform(0, 1, 30))
    y = (1 - x) ** 3
    across, down = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
    distance = (1 - across - down) / math.sqrt(2)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    assert pareto.knee(points, ["minimize", "minimize"]) == int(np.argmax(distance))


def test_there_is_no_knee_without_points():
    assert pareto.knee([], ["minimize"]) is None


def test_overlapping_members_are_ties_and_a_near_miss_is_a_contender():
    rows = [
        (Interval(100, 95, 105), Interval(10, 9, 11)),
        (Interval(98, 93, 103), Interval(10.5, 9.5, 11.5)),
        (Interval(80, 78, 82), Interval(10.5, 9.5, 11.5)),
        (Interval(60, 58, 62), Interval(4, 3.5, 4.5)),
    ]
    found = pareto.noisy_front(rows, ["maximize", "minimize"])
    assert found.members == (0, 3)
    assert found.contenders == (1,)
    assert found.ties == {0: (1,), 3: (), 1: (0,)}


@given(tables())
def test_exact_intervals_leave_no_contenders_and_tie_only_equals(table):
    points, directions = table
    found = pareto.noisy_front([[Interval(value, value, value) for value in point] for point in points], directions)
    assert found.members == pareto.front(points, directions)
    assert found.contenders == ()
    for index, others in found.ties.items():
        assert all(points[other] == points[index] for other in others)


@given(tables(most=8), st.integers(0, 3))
def test_wider_noise_never_loses_a_contender(table, width):
    points, directions = table

    def shown(noise):
        found = pareto.noisy_front([[Interval(v, v - noise, v + noise) for v in point] for point in points], directions)
        return set(found.members) | set(found.contenders)

    assert shown(width) <= shown(width + 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        pareto.front([(1.0, bad)], ["minimize", "minimize"])


def test_points_of_another_width_are_refused():
    with pytest.raises(ValueError, match="2 values"):
        pareto.front([(1.0,)], ["minimize", "minimize"])


def test_a_reference_needs_points():
    with pytest.raises(ValueError, match="at least one"):
        pareto.nadir_reference([], ["minimize"])


def test_forty_members_in_three_objectives_agree_with_optuna():
    rng = np.random.default_rng(0)
    sphere = np.abs(rng.normal(size=(40, 3)))
    points = [tuple(row) for row in 1 - sphere / np.linalg.norm(sphere, axis=1, keepdims=True)]
    directions = ["minimize"] * 3
    reference = pareto.nadir_reference(points, directions)
    theirs = compute_hypervolume(np.array(points), np.array(reference.values))
    assert pareto.hypervolume(points, directions, reference) == pytest.approx(theirs)
