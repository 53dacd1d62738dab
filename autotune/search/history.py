"""What the sampler is told of each trial, and how much of it the sampler sees.

A measured trial is told with its values and violations. A trial that failed for its configuration's own reason is told
without values, with every constraint violated by the most seen so far, 0.3 at least; samplers that cannot read that are
given the worst values seen instead, here and nowhere else. A machine's fault is not told: it says nothing about the
configuration.

A trial that was ended early is told as far as it got, with the constraint `feasible` broken by a little: what it showed is
no result, and may look better than it would have become. So it ranks below every feasible trial and above a crash.

A sampler's cost grows with what it sees, so it sees at most the front, the latest measured trials and the latest
violations, each up to a limit. Below those limits it sees everything.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from autotune.distributions import Distribution
from autotune.pareto import joined
from autotune.score import Direction, Reached, Score
from autotune.search.samplers import SharedTrial, to_optuna, told
from autotune.space import Space
from autotune.trial import Scalar

FEASIBLE = "feasible"
"""The constraint every trial has: -1 for one that was measured, +1 for one that failed or was cut."""
WORST_AT_LEAST = 0.3
SHORT = 0.1
"""The constraint `feasible` of a trial that was ended early."""
FRONT_LIMIT = 64
MEASURED_LIMIT = 128
VIOLATED_LIMIT = 64


@dataclass(frozen=True, order=True)
class Told:
    """One thing the sampler was told. `score` None is a failure or a cut. Order: trial number, then cuts in it.

    `reached` is set for a trial that was ended early, whose score then never enters the front.
    """

    number: int
    attempt: int
    point: Mapping[str, Scalar] = field(compare=False)
    distributions: Mapping[str, BaseDistribution] = field(compare=False)
    score: Score | None = field(compare=False, default=None)
    reached: Reached | None = field(compare=False, default=None)


class History:
    """What was told, in the order of trial numbers whatever order it came in: no more of it than the sampler may still see."""

    def __init__(self, space: Space, directions: Sequence[Direction], constraints: Sequence[str]) -> None:
        self.space = space
        self.directions = tuple(directions)
        self.constraints = tuple(constraints)
        self.running: dict[int, Told] = {}
        self.measured = 0
        """How many trials were told with values."""
        self._measured: list[Told] = []
        self._violated: list[Told] = []
        self._front: list[Told] = []
        self._worst = [WORST_AT_LEAST] * len(self.constraints)
        self._worst_values: tuple[float, ...] | None = None
        self._cache: dict[Told, SharedTrial] = {}
        self._failures: dict[Told, SharedTrial] = {}
        self._failures_as: tuple[object, ...] = ()
        self._shapes: set[frozenset[str]] = set()
        self._distributions: dict[tuple[str, Distribution], BaseDistribution] = {}

    @property
    def conditional(self) -> bool:
        """Whether points with different parameters were seen."""
        return len(self._shapes) > 1

    def entry(self, number: int, point: Mapping[str, Scalar], score: Score | Reached | None = None, attempt: int = 0) -> Told:
        """Raises KeyError when the point is not one of the space."""
        distributions = {name: self._as_optuna(name, found) for name, found in self.space.distributions(point).items()}
        if any(not found._contains(found.to_internal_repr(point[name])) for name, found in distributions.items()):
            raise KeyError("The point lies outside the space.")
        if isinstance(score, Reached):
            return Told(number, attempt, dict(point), distributions, score.as_score, score)
        return Told(number, attempt, dict(point), distributions, score)

    def tell(self, entry: Told) -> None:
        """Add what a trial or a cut says."""
        self._shapes.add(frozenset(entry.point))
        kept, limit = (self._violated, VIOLATED_LIMIT) if entry.score is None else (self._measured, MEASURED_LIMIT)
        bisect.insort(kept, entry)
        del kept[:-limit]
        self.measured += entry.score is not None
        told = entry.score or entry.reached
        if told is None:
            return
        self._worst = [max(known, seen or 0.0) for known, seen in zip(self._worst, told.violations, strict=True)]
        if entry.score is None:
            return
        self._note_worst_values(entry.score.values)
        if entry.score.feasible and entry.reached is None:
            self._keep_front(entry)

    def trials(self, impute: bool) -> list[SharedTrial]:
        """What the sampler sees now, oldest first. `impute` for samplers that learn from values only."""
        seen = {*self._front[-FRONT_LIMIT:], *self._measured, *self._violated}
        for cache in (self._cache, self._failures):
            for entry in [entry for entry in cache if entry not in seen]:
                del cache[entry]
        frozen = [self._frozen(entry, impute) for entry in sorted(seen)]
        running = [self.running[number] for number in sorted(self.running)]
        asked = [told(entry.point, entry.distributions, TrialState.RUNNING, None, None) for entry in running]
        return [trial for trial in frozen if trial is not None] + asked

    def winner(self) -> Mapping[str, Scalar] | None:
        """The point of the best feasible trial in the first objective; None before there is one."""
        if not self._front:
            return None
        sign = 1.0 if self.directions[0] == "maximize" else -1.0
        return max(self._front, key=lambda entry: sign * entry.score.values[0] if entry.score else 0.0).point

    def _note_worst_values(self, values: tuple[float, ...]) -> None:
        known = self._worst_values or values
        pick = {"maximize": min, "minimize": max}
        self._worst_values = tuple(
            pick[direction](one, other) for direction, one, other in zip(self.directions, known, values, strict=True)
        )

    def _keep_front(self, entry: Told) -> None:
        assert entry.score is not None
        candidates = [*self._front, entry]
        kept = joined([one.score.values for one in self._front if one.score], entry.score.values, self.directions)
        self._front = sorted(candidates[index] for index in kept)

    def violated(self) -> dict[str, float]:
        """The constraints of a failure or a cut."""
        return {FEASIBLE: 1.0, **dict(zip(self.constraints, self._worst, strict=True))}

    def _as_optuna(self, name: str, distribution: Distribution) -> BaseDistribution:
        """One object for all trials: they took half of the memory. By name, since `Choice((0, 1)) == Choice((False, True))`."""
        if (name, distribution) not in self._distributions:
            self._distributions[name, distribution] = to_optuna(distribution)
        return self._distributions[name, distribution]

    def _frozen(self, entry: Told, impute: bool) -> SharedTrial | None:
        if entry.score is None:
            return self._frozen_failure(entry, impute)
        if entry not in self._cache:
            sound = -1.0 if entry.reached is None else SHORT
            named = {FEASIBLE: sound, **dict(zip(self.constraints, entry.score.violations, strict=True))}
            self._cache[entry] = told(entry.point, entry.distributions, TrialState.COMPLETE, entry.score.values, named)
        return self._cache[entry]

    def _frozen_failure(self, entry: Told, impute: bool) -> SharedTrial | None:
        if impute and self._worst_values is None:
            return None
        state, values = (TrialState.COMPLETE, self._worst_values) if impute else (TrialState.PRUNED, None)
        key = (tuple(self._worst), values)
        if self._failures_as != key:
            self._failures.clear()
            self._failures_as = key
        if entry not in self._failures:
            violated = self._short(entry.reached) if entry.reached else self.violated()
            self._failures[entry] = told(entry.point, entry.distributions, state, values, violated)
        return self._failures[entry]

    def _short(self, reached: Reached) -> dict[str, float]:
        """The constraints of a trial that was ended early, as far as they are known."""
        return {FEASIBLE: SHORT, **dict(zip(self.constraints, (one or 0.0 for one in reached.violations), strict=True))}
