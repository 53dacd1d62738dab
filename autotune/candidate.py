"""One configuration with all its runs: what they measured of it, and whether it may enter the front. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from autotune.rules import StudyRule
from autotune.score import Objective, Score, known, unsteady
from autotune.trial import CLIENT_LATE, Failed, FailureKind, Origin, TrialRecord


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured. `trial` is the number it is called by: that of its first measured run."""

    trial: int
    digest: str
    records: tuple[TrialRecord, ...]
    scores: tuple[Score, ...]
    """Of each of the records."""
    sound: bool
    """No run failed or was left without a score by the configuration's own fault, and the answers are not known to be too far
    from the default's."""
    forbidden: StudyRule | None = None
    """The rule of the study's own that it breaks: a default that does is the yardstick all the same."""

    @property
    def holds(self) -> bool:
        """Whether it is sound and keeps every constraint."""
        return self.sound and not any(self.excess)

    @property
    def feasible(self) -> bool:
        """Whether it may enter the front, and with that be a finalist, win and be exported."""
        return self.holds and self.forbidden is None

    @property
    def excess(self) -> tuple[float, ...]:
        """By how much of its limit the runs that judge it break each constraint on average; 0 where they keep it."""
        columns = zip(*(found.violations for _, found in self._judges), strict=True)
        return tuple(max(0.0, fmean(column)) for column in columns)

    @property
    def peak_memory_gib(self) -> float:
        """Highest peak memory of the runs; infinite where it was not measured, so that the measured one is preferred."""
        names = ("peak_gpu_memory_gib", "peak_memory_gib")
        totals = [record.measurement.totals for record in self.records if record.measurement is not None]
        return max((total[name] for total in totals for name in names if name in total), default=float("inf"))

    def samples(self, objective: Objective) -> list[float]:
        """The metric in each run that judges the configuration; runs that lack it are left out."""
        return [found for record, _ in self._judges if (found := value(record, objective)) is not None]

    def steady(self, objective: Objective) -> bool:
        """Whether any of the runs measured the objective in a steady window."""
        return any(record.measurement is not None and not unsteady(record.measurement, [objective]) for record in self.records)

    @property
    def _judges(self) -> tuple[tuple[TrialRecord, Score], ...]:
        """The runs as a finalist, where there are any: it became one by the luck of its search run, which would overstate it."""
        runs = tuple(zip(self.records, self.scores, strict=True))
        return tuple(run for run in runs if run[0].origin is Origin.FINALIST) or runs


def value(record: TrialRecord, objective: Objective) -> float | None:
    """The metric in one run; None where it was not measured."""
    return None if record.measurement is None else known(record.measurement, objective.selector)


def own_fault(record: TrialRecord) -> bool:
    """Whether a run without a score failed, or served a level invalidly, for a reason that is the configuration's own."""
    outcome = record.outcome
    if isinstance(outcome, Failed):
        # Where the client was late at every level nothing was measured, and that failure is as little the configuration's.
        rows = outcome.partial.rows if outcome.kind is FailureKind.INCOMPLETE and outcome.partial is not None else ()
        late = bool(rows) and all(CLIENT_LATE in (row.invalid or "") for row in rows)
        return outcome.kind.deterministic and outcome.kind is not FailureKind.ENDED_EARLY and not late
    return any(row.invalid is not None and CLIENT_LATE not in row.invalid for row in outcome.measurement.rows)
