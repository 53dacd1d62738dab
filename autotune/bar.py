"""The bar that a trial has to clear while it runs: whether it can still reach the front, judged from the levels done so far.

A trial is hopeless when even the favourable end of what it measured adds less than `LEAST_GAIN` of the front's
hypervolume, or breaks a constraint. The favourable end is one-sided, of Student's t on logarithms, with the noise that
repeats of this study showed, and wide enough for the difference of two single runs: those on the front were measured
once themselves. What that can lose is bounded: the chance that noise ends a trial whose true values keep the constraints
and would add `LEAST_GAIN` or more to the front as measured is at most 1 - `CONFIDENCE`, as far as the noise is log-normal.
The error is split evenly over the study's goals and over the looks in shares of 1 / (k (k + 1)), which add up to 1 however
many looks there are (Bonferroni).

A goal whose number cannot be bounded yet ends nothing: a level that is still to come may be the one that counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autotune import pareto
from autotune.metrics import lookup
from autotune.score import Constraint, Objective, Selector
from autotune.stats import t_quantile
from autotune.trial import Frozen, Row, Scalar

CONFIDENCE = 0.95
LEAST_GAIN = 0.002
"""Share of the front's hypervolume that a trial has to be able to add."""
_PER_REQUEST = ("requests_per_s", "sps", "goodput_per_s")
_PER_TOKEN = ("output_tokens_per_s", "total_tokens_per_s")

Level = Mapping[str, Scalar]


class Spread(Frozen):
    """Run-to-run standard deviation of a number's logarithm, and the degrees of freedom it is known with."""

    deviation: float
    freedom: float

    def factor(self, chance: float) -> float:
        """What one run lies above or below another one of equal truth with this chance at most."""
        return math.exp(t_quantile(1 - chance, self.freedom) * self.deviation * math.sqrt(2))


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a running trial has shown.

    `ahead` are the levels still to come, an empty one for a level that is not known yet. `totals` are the best that each
    metric of the whole trial can still end at: the peak so far, the lowest rate that a climb saw broken. `noise` is that
    of a row relative to a full one's, and `looks` counts the rows of an earlier pass.
    """

    rows: tuple[Row, ...]
    ahead: tuple[Level, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)
    noise: float = 1.0
    looks: int = 0

    def share(self, index: int) -> float:
        """The share of the error that belongs to a row."""
        number = self.looks + index + 1
        return 1 / (number * (number + 1))


class Goal(NamedTuple):
    """A number of the study, which of several rows it is taken from, and which end is favourable."""

    selector: Selector
    highest: bool
    more: bool
    spread: Spread | None


class Bar(Frozen):
    """What the other trials of a study reached when this one began. `nadir` holds the worst value of each objective."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    front: tuple[tuple[float, ...], ...]
    nadir: tuple[float, ...]
    spreads: tuple[Spread | None, ...]
    """Of the objectives, then of the constraints; None where it cannot be told."""
    probe_s: float | None = None
    """Seconds of a first pass over the levels, to be judged with accordingly more noise."""

    @property
    def reads_levels(self) -> bool:
        """Whether a goal takes its number from load levels, and not from the whole trial."""
        goals = [*(one.selector for one in self.objectives), *(one.selector for one in self.constraints)]
        return any(one.key is not None or lookup(one.metric).scope == "row" for one in goals)

    def hopeless(self, seen: SoFar) -> str | None:
        """Why the trial cannot reach the front, or None."""
        return self._broken(seen) or self._surpassed(seen)

    def _broken(self, seen: SoFar) -> str | None:
        spreads = self.spreads[len(self.objectives) :]
        for constraint, spread in zip(self.constraints, spreads, strict=True):
            at_most = constraint.op == "<="
            best = self._best(Goal(constraint.selector, at_most, not at_most, spread), seen)
            if best is not None and constraint.violation(best) > 0:
                return f"{constraint.name} is broken beyond noise, at best with {best:.4g}."
        return None

    def _surpassed(self, seen: SoFar) -> str | None:
        pairs = zip(self.objectives, self.spreads, strict=False)
        goals = [Goal(one.selector, True, one.direction == "maximize", spread) for one, spread in pairs]
        known = [self._best(goal, seen) for goal in goals]
        best = tuple(value for value in known if value is not None)
        if not self.front or len(best) < len(goals) or self._gain(best) >= LEAST_GAIN:
            return None
        shown = " and ".join(f"{one.name} {value:.4g}" for one, value in zip(self.objectives, best, strict=True))
        return (
            f"At best, {shown} would add less than {LEAST_GAIN:.1%} to the front's hypervolume; the chance that noise hides more "
            f"is below {1 - CONFIDENCE:.0%}."
        )

    def _gain(self, point: tuple[float, ...]) -> float:
        """The share of hypervolume that a point adds, under the reference that all measured points and itself give."""
        directions = [objective.direction for objective in self.objectives]
        reference = pareto.nadir_reference([*self.front, self.nadir, point], directions)
        before = pareto.hypervolume(self.front, directions, reference)
        return pareto.hypervolume([*self.front, point], directions, reference) / before - 1

    def _best(self, goal: Goal, seen: SoFar) -> float | None:
        """The favourable end of what a goal's number can still become; None where nothing bounds it."""
        if goal.spread is None:
            return None
        metric = lookup(goal.selector.metric)
        if goal.selector.key is not None or metric.scope == "row":
            return self._best_row(goal, seen)
        own = "maximize" if goal.more else "minimize"
        value = seen.totals.get(goal.selector.metric)
        return None if value is None or metric.direction != own else self._end(goal, value, seen, len(seen.rows) - 1, 1.0)

    def _best_row(self, goal: Goal, seen: SoFar) -> float | None:
        name = goal.selector.metric
        rows = [(index, row) for index, row in enumerate(seen.rows) if _meant(goal.selector, row.level)]
        if any(row.invalid is not None or name not in row.metrics for _, row in rows):
            return None
        ends = [self._end(goal, row.metrics[name], seen, index, seen.noise) for index, row in rows]
        if goal.more and goal.highest:
            ahead = [level for level in seen.ahead if _meant(goal.selector, level)]
            limits = [ceiling(name, level, seen.rows) for level in ahead]
            ends += [None if one is None else self._end(goal, one, seen, len(seen.rows) - 1, seen.noise) for one in limits]
        known = [end for end in ends if end is not None]
        return (max if goal.highest else min)(known) if known and len(known) == len(ends) else None

    def _end(self, goal: Goal, value: float, seen: SoFar, index: int, noise: float) -> float | None:
        """A number made better by its noise; None for one that has no logarithm."""
        if value <= 0 or goal.spread is None:
            return None
        chance = (1 - CONFIDENCE) * seen.share(max(index, 0)) / len(self.spreads)
        factor: float = goal.spread.factor(chance) ** noise
        return value * factor if goal.more else value / factor


def ceiling(metric: str, level: Level, rows: Sequence[Row]) -> float | None:
    """The most that a level to come can show: an open loop finishes no more than arrives. None where nothing says."""
    rate = level.get("request_rate")
    if not isinstance(rate, int | float):
        return None
    if metric in _PER_REQUEST:
        return float(rate)
    if metric not in _PER_TOKEN:
        return None
    known = [row.metrics for row in rows if metric in row.metrics and row.metrics.get("requests_per_s", 0) > 0]
    return max((rate * one[metric] / one["requests_per_s"] for one in known), default=None)


def decisive_first(levels: Sequence[Level], objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> tuple[int, ...]:
    """The order in which levels tell soonest that a trial is hopeless: those that a constraint names, for one of them is
    enough; those that an objective names; where the best of all levels counts, those with the highest ceiling; else as given.

    An empty level is a climb's, which finds its own rates.
    """
    best_of_all = any(
        one.selector.key is None and one.direction == "maximize" and lookup(one.selector.metric).scope == "row"
        for one in objectives
    )

    def weight(index: int) -> tuple[int, int, float]:
        level = levels[index]
        if not level:
            return 0, -sum(one.selector.metric.startswith("slo_") for one in objectives), 0.0
        wanted = sum(one.selector.key is not None and _meant(one.selector, level) for one in objectives)
        bounded = sum(one.selector.key is not None and _meant(one.selector, level) for one in constraints)
        rate = level.get("request_rate")
        highest = float(rate) if isinstance(rate, int | float) else math.inf
        return -bounded, -wanted, -highest if best_of_all else 0.0

    return tuple(sorted(range(len(levels)), key=weight))


def _meant(selector: Selector, level: Level) -> bool:
    """Whether a selector looks at a level; an unknown one may turn out to be a rate."""
    if selector.key is None:
        return True
    return level.get(selector.key) == selector.value if level else selector.key == "request_rate"
