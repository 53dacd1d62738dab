"""Asks a sampler what to try next and tells it what came of it.

The order of trials: each engine's default, earlier fronts and the user's configurations, random ones up to
`startup_trials`, then the sampler's. A proposal depends on the finished and running trials, the seed and the trial's
number only, so replaying a ledger through `tell`, `cut` and `begin` restores the search exactly, in whatever order its
trials finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from autotune.feasibility.cut import Cut
from autotune.score import Direction, Reached, Score
from autotune.search import samplers
from autotune.search.candidates import Candidates, Prior
from autotune.search.history import History, Told
from autotune.search.prior import Begun
from autotune.space import Point, Space
from autotune.study import Search
from autotune.trial import Configuration, Failed, Frozen, Origin, Scalar, TrialRecord, Value

AUDIT_SHARE = 0.05
"""Share of cuts by the memory bound that are run to check the bound."""
Feasible = Callable[[Configuration], Cut | None]


class First(Frozen):
    """A configuration to try before the search proper."""

    configuration: Configuration
    origin: Origin = Origin.USER


class Proposal(Frozen):
    """What to run next. With `duplicate_of`, an equal configuration was already run under that number: every further
    proposal would repeat something, so take that record as the answer, or run it as a wanted repeat. `cuts` are the
    proposals dropped on the way, to be kept in the ledger; `audit` says which bound this trial checks."""

    number: int
    configuration: Configuration
    origin: Origin
    point: Mapping[str, Scalar] = {}
    duplicate_of: int | None = None
    cuts: tuple[Cut, ...] = ()
    audit: Cut | None = None


class Driver:
    """The search of one study. Not thread-safe: one driver process asks and tells."""

    def __init__(
        self,
        space: Space,
        directions: Sequence[Direction],
        constraints: Sequence[str],
        search: Search,
        first: Sequence[First] = (),
        resolved: Mapping[str, Mapping[str, Value]] | None = None,
        feasible: Feasible | None = None,
        learn: Callable[[TrialRecord], None] | None = None,
        prior: Prior | None = None,
    ) -> None:
        """`resolved` holds each engine's own values for its default, by which configurations are placed in the space.
        `feasible` says what is cut before a launch, and `learn` lets it know of every finished trial.

        Raises InvalidInput or MissingPrerequisite for a sampler that cannot be built.
        """
        samplers.check(search.sampler, search.options)
        self.space = space
        self.notes: list[str] = []
        """Sentences for the user about what the sampler cannot be told."""
        self._resolved = resolved or {}
        self._feasible = feasible or (lambda configuration: None)
        self._learn = learn or (lambda record: None)
        self._history = History(space, directions, constraints)
        self._numbers: dict[str, int] = {}
        self._begun: dict[int, Begun] = {}
        self._told: set[int] = set()
        self._cut: set[str] = set()
        self._next = 0
        self._due = {one.configuration.digest: (one, self._point_of(one.configuration, {})) for one in self._queue(first)}
        self._points = [point for _, point in self._due.values()]
        self._candidates = Candidates(
            space, search, self._history, prior, lambda configuration: self._feasible(configuration) is None
        )

    @property
    def next_number(self) -> int:
        """The number of the next trial."""
        return self._next

    def ask(self) -> Proposal | None:
        """What to run next; None when nothing is left that may be run."""
        if self._due:
            chosen, point = next(iter(self._due.values()))
            proposal = Proposal(number=self._next, configuration=chosen.configuration, origin=chosen.origin, point=point or {})
        else:
            found = self._searched()
            if found is None:
                return None
            proposal = found
        self.begin(proposal.number, proposal.configuration, proposal.point)
        return proposal

    def begin(self, number: int, configuration: Configuration, point: Mapping[str, Scalar]) -> None:
        """Count a trial as running, so that nothing near it is proposed. `ask` does so itself; a resume has to."""
        self._next = max(self._next, number + 1)
        self._due.pop(configuration.digest, None)
        self._begun[number] = Begun(configuration)
        self._numbers.setdefault(configuration.digest, number)
        entry = self._entry(number, self._placed(configuration, point) if point else None)
        if entry is not None:
            self._history.running[number] = entry

    def cut(self, cut: Cut) -> None:
        """Count a proposal as cut. `ask` does so itself; a resume replays those the ledger kept."""
        entry = self._entry(cut.number, self._placed(cut.configuration, cut.point), attempt=cut.attempt + 1)
        if entry is not None and cut.configuration.digest not in self._cut:
            self._history.tell(entry)
        self._cut.add(cut.configuration.digest)

    def tell(self, record: TrialRecord, score: Score | Reached | None) -> None:
        """Learn from a finished trial, or from how far one came that was ended early; `score` None is a failure.

        Finalists and re-measured defaults are not told.
        """
        self._history.running.pop(record.number, None)
        self._next = max(self._next, record.number + 1)
        self._due.pop(record.configuration.digest, None)
        found = score.as_score if isinstance(score, Reached) else score
        self._begun[record.number] = Begun(record.configuration, found.values if found else None)
        self._learn(record)
        if record.origin in (Origin.FINALIST, Origin.BASELINE) or record.number in self._told:
            return
        if isinstance(record.outcome, Failed) and not record.outcome.kind.deterministic:
            self._numbers.pop(record.configuration.digest, None)
            return
        known = self._numbers.setdefault(record.configuration.digest, record.number)
        if known != record.number and record.reused_from is not None:
            return
        self._tell(record, score)

    def _tell(self, record: TrialRecord, score: Score | Reached | None) -> None:
        point = self._placed(record.configuration, record.point, record.effective)
        entry = self._entry(record.number, point, score)
        if entry is None:
            what = "default configuration" if record.origin is Origin.DEFAULT else f"configuration of trial {record.number}"
            self.notes.append(
                f"The {record.configuration.engine} {what} lies outside the search space, so the sampler does not learn from it."
            )
            return
        self._told.add(record.number)
        self._history.tell(entry)

    def _entry(
        self, number: int, point: Mapping[str, Scalar] | None, score: Score | Reached | None = None, attempt: int = 0
    ) -> Told | None:
        """None for a point that this space does not have."""
        try:
            return self._history.entry(number, point, score, attempt) if point else None
        except (LookupError, ValueError, TypeError):
            return None

    def _queue(self, first: Sequence[First]) -> tuple[First, ...]:
        defaults = [First(configuration=Configuration(engine=kind), origin=Origin.DEFAULT) for kind in self.space.engines]
        unique = {entry.configuration.digest: entry for entry in reversed([*defaults, *first])}
        return tuple(reversed(unique.values()))

    def _placed(
        self, configuration: Configuration, point: Mapping[str, Scalar], effective: Mapping[str, Value] | None = None
    ) -> Mapping[str, Scalar] | None:
        """A configuration's point in this space. Ranges may have changed since it was proposed, and its point mean another."""
        with contextlib.suppress(LookupError, ValueError, TypeError):
            # One that a study named leaves the rest to the engine, so its point says more than it does.
            if point and (self.space.decode(point) == configuration or point == self._point_of(configuration, {})):
                return point
        return self._point_of(configuration, effective or {})

    def _point_of(self, configuration: Configuration, effective: Mapping[str, Value]) -> Point | None:
        resolved = {**self._resolved.get(configuration.engine, {}), **effective}
        return self.space.encode(configuration, resolved)

    def _searched(self) -> Proposal | None:
        number, cuts = self._next, list[Cut]()
        duplicate: tuple[Point, Configuration] | None = None
        for attempt, point in self._candidates.points(number, self._points, self._begun, self._cut):
            configuration = self.space.decode(point)
            found = self._feasible(configuration)
            if found is not None:
                found = found.model_copy(update={"number": number, "attempt": attempt, "point": point})
                if found.certainty == "likely" and self._candidates.random(number, attempt, "audit").random() < AUDIT_SHARE:
                    return self._proposal(number, point, configuration, Origin.AUDIT, cuts, audit=found)
                if configuration.digest not in self._cut:
                    cuts.append(found)
                self.cut(found)
            elif configuration.digest in self._numbers:
                duplicate = duplicate or (point, configuration)
            else:
                return self._proposal(number, point, configuration, Origin.SEARCH, cuts)
        if duplicate is None:
            return None
        known = self._numbers[duplicate[1].digest]
        return self._proposal(number, *duplicate, Origin.SEARCH, cuts, duplicate_of=known)

    def _proposal(
        self,
        number: int,
        point: Point,
        configuration: Configuration,
        origin: Origin,
        cuts: Sequence[Cut],
        duplicate_of: int | None = None,
        audit: Cut | None = None,
    ) -> Proposal:
        return Proposal(
            number=number,
            configuration=configuration,
            origin=origin,
            point=point,
            cuts=tuple(cuts),
            duplicate_of=duplicate_of,
            audit=audit,
        )
