"""What the trials of a study reached so far, and how far one run lies from another: where the bar of the next trial comes from.

Repeats tell the noise, but a young study has few: an assumed noise counts as `ASSUMED_RUNS` of them until they outweigh it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from autotune import estimates, pareto
from autotune.bar import Bar, Spread
from autotune.metrics import lookup
from autotune.score import Constraint, Objective, Score, value_of
from autotune.trial import Configuration, Origin, TrialRecord

CLIMB_SHARE = 0.7
"""Share of a sustained request rate at which the next climb begins: below it, so that its first probe is seldom broken, and
above half of it, so that the first doubling passes it."""
ASSUMED_RUNS = 4
"""How many repeats the assumed noise counts as, until the study's own outweigh it."""


class Standings:
    """What the trials of a study reached so far; hears each of them and gives the bar for the next one."""

    def __init__(self, objectives: Sequence[Objective], constraints: Sequence[Constraint], probe_s: float | None = None) -> None:
        self._objectives, self._constraints, self._probe_s = tuple(objectives), tuple(constraints), probe_s
        self._directions = [objective.direction for objective in objectives]
        self._front: list[tuple[float, ...]] = []
        self._nadir: tuple[float, ...] = ()
        self._runs: dict[str, list[tuple[float, ...]]] = {}
        self._spreads = self._pooled()
        self._sustained: dict[str, float] = {}

    def hear(self, record: TrialRecord, found: Score | None, wanted: bool = True) -> None:
        """Take up a finished trial; one without a score says nothing here.

        What the study forbids is no bar for others, only a run that noise is told by.
        """
        if found is None or record.measurement is None:
            return
        if (rate := record.measurement.totals.get("slo_request_rate")) is not None:
            self._sustained[record.configuration.digest] = rate
        bounded = [value_of(record.measurement, one.selector, one.op == "<=") for one in self._constraints]
        runs = self._runs.setdefault(record.configuration.digest, [])
        runs.append((*found.values, *bounded))
        if len(runs) > 1:
            self._spreads = self._pooled()
        # The luckiest of several runs would raise the bar: a configuration counts once.
        if wanted and len(runs) == 1 and found.feasible and record.origin is not Origin.FINALIST:
            self._enter(found.values)

    def bar(self) -> Bar | None:
        """None before anything feasible was measured."""
        if not self._front:
            return None
        return Bar(
            objectives=self._objectives,
            constraints=self._constraints,
            front=tuple(self._front),
            nadir=self._nadir,
            spreads=self._spreads,
            probe_s=self._probe_s,
        )

    def climb_from(self, configuration: Configuration) -> float | None:
        """Where a climb of this configuration begins: below what it sustained before, else below what others did.

        Their median, not the last or the best of them: a climb that begins far from the boundary spends its steps on the way.
        """
        if not self._sustained:
            return None
        return CLIMB_SHARE * self._sustained.get(configuration.digest, median(self._sustained.values()))

    def _enter(self, values: tuple[float, ...]) -> None:
        points = [*self._front, values]
        self._front = [points[index] for index in pareto.joined(self._front, values, self._directions)]
        worse = {"maximize": min, "minimize": max}
        pairs = zip(self._directions, self._nadir or values, values, strict=True)
        self._nadir = tuple(worse[direction](one, other) for direction, one, other in pairs)

    def _pooled(self) -> tuple[Spread | None, ...]:
        names = [one.selector.metric for one in self._objectives] + [one.selector.metric for one in self._constraints]
        repeated = [runs for runs in self._runs.values() if len(runs) > 1]
        return tuple(_spread(name, [[run[index] for run in runs] for runs in repeated]) for index, name in enumerate(names))


def _spread(metric: str, groups: Sequence[Sequence[float]]) -> Spread | None:
    """The assumed noise and that of the repeats, each weighted by its degrees of freedom (moderated variance, Smyth 2004)."""
    assumed, found = _assumed(metric), estimates.pooled(groups)
    if found is None:
        return Spread(deviation=assumed, freedom=ASSUMED_RUNS)
    if not found.logarithmic:
        return None
    freedom = ASSUMED_RUNS + found.freedom
    square = (ASSUMED_RUNS * assumed**2 + found.freedom * found.deviation**2) / freedom
    return Spread(deviation=math.sqrt(square), freedom=freedom)


def _assumed(metric: str) -> float:
    """Memory is reserved, not measured anew; a rate varies by a few percent between launches, a latency's tail by twice that."""
    known = lookup(metric)
    if known.unit == "GiB":
        return 0.01
    return 0.10 if known.distribution else 0.05
