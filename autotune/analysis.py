"""What a study's trials say together: candidates, front with ties, gain over the default, hypervolume, knee. Pure.

A configuration that was measured several times (default, baselines, finalists) is one candidate: the mean of its runs,
with an interval from the noise pooled over all repeats of the study (`estimates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from autotune import estimates, pareto
from autotune.errors import InvalidInput, Mistake, NotFound, NothingMeasured
from autotune.estimates import Gain, Noise
from autotune.metrics import lookup
from autotune.pareto import Direction
from autotune.quality import Guard, Review
from autotune.score import Objective, Score, Selector, score, unsteady, value_of
from autotune.secrets import redact
from autotune.space import OwnRules, StudyRule
from autotune.stats import Interval
from autotune.study import Study
from autotune.trial import CLIENT_LATE, Configuration, Failed, FailureKind, Origin, TrialFailed, TrialRecord
from autotune.validation import sentence


@dataclass(frozen=True)
class Candidate:
    """One configuration with all its runs. `trial` is the number it is called by: that of its first measured run."""

    trial: int
    digest: str
    records: tuple[TrialRecord, ...]
    holds: bool
    """Every constraint kept by the mean of the runs (of the finalist's runs, where there are any), no run failed or was left
    without a score by the configuration's own fault, and the answers are not known to be too far from the default's."""
    forbidden: StudyRule | None = None
    """The rule of the study's own that it breaks: a default that does is the yardstick all the same."""

    @property
    def feasible(self) -> bool:
        """Whether it may enter the front, and with that be a finalist, win and be exported."""
        return self.holds and self.forbidden is None


@dataclass(frozen=True)
class Volume:
    """Hypervolume after each trial, and the reference it is measured from."""

    reference: pareto.Reference
    values: Mapping[int, float]


@dataclass(frozen=True)
class Analysis:
    """A study and its trial records, seen together."""

    study: Study
    records: tuple[TrialRecord, ...]
    _noise: dict[str, Noise | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def guard(self) -> Guard:
        """What is known to change the model's answers; nothing where only the records are known."""
        return Guard()

    @property
    def own_rules(self) -> Mapping[str, OwnRules]:
        """What the study's user does not want, by engine; nothing where only the records are known."""
        return {}

    def forbidden(self, configuration: Configuration) -> StudyRule | None:
        """The rule of the study's own that a configuration breaks, the default included."""
        return self.own_rules.get(configuration.engine, OwnRules()).forbid(configuration)

    @cached_property
    def quality(self) -> Review:
        """What the rounds say of the answers of configurations that can change them."""
        return Review(self.guard, self.study.quality.max_drift_nats, self.records)

    def named(self, configuration: Configuration, limit: int = 60) -> str:
        """A configuration on one line: its overrides, behind its engine where the study has several."""
        text = short(configuration, limit)
        return f"{configuration.engine}: {text}" if len(self.study.engine) > 1 else text

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of the objectives, in the study's order."""
        return tuple(objective.direction for objective in self.study.objectives)

    def record(self, trial: int) -> TrialRecord:
        """The last attempt at a trial. Raises NotFound."""
        found = [record for record in self.records if record.number == trial]
        if not found:
            known = f"0 to {max(record.number for record in self.records)}" if self.records else "none yet"
            raise NotFound(f"Study {self.name!r} has no trial {trial}; its trials are {known}.")
        return max(found, key=lambda record: record.attempt)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.study.objectives)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every configuration that was measured, in order of its first measured run."""
        runs: dict[str, list[TrialRecord]] = {}
        for record in self.records:
            runs.setdefault(record.configuration.digest, []).append(record)
        found = [self._candidate(digest, group) for digest, group in runs.items()]
        return tuple(sorted((one for one in found if one is not None), key=lambda one: one.trial))

    @cached_property
    def noisy_front(self) -> pareto.NoisyFront:
        """The front over the feasible candidates; its indices point into `feasible`."""
        return pareto.noisy_front([self.interval_point(one) for one in self.feasible], self.directions)

    @cached_property
    def feasible(self) -> tuple[Candidate, ...]:
        """The candidates that may enter the front."""
        return tuple(one for one in self.candidates if one.feasible)

    @cached_property
    def membership(self) -> Mapping[int, str]:
        """Trial number → `member` or `contender` (dominated only within noise); trials of neither are absent."""
        found = self.noisy_front
        marks = [(index, "member") for index in found.members] + [(index, "contender") for index in found.contenders]
        return {record.number: mark for index, mark in marks for record in self.feasible[index].records}

    @cached_property
    def default_candidate(self) -> Candidate | None:
        """The engine's default configuration, None when it was not measured."""
        origins = (Origin.DEFAULT, Origin.BASELINE)
        return next((one for one in self.candidates if any(record.origin in origins for record in one.records)), None)

    def gain(self, metric: str | None = None, trial: int | None = None) -> Gain:
        """How a trial compares with the default in a metric (a selector such as `ttft_ms.p99 @ request_rate=40`).

        Without `metric` the first objective; without `trial` the front's best in that metric.
        Raises NothingMeasured, NotFound, InvalidInput.
        """
        objective = self.objective(metric or self.objective_names[0])
        best = self.candidate(self.best(objective.name) if trial is None else trial)
        if self.default_candidate is None:
            raise NothingMeasured(f"The engine's default configuration was not measured in study {self.name!r}.")
        samples, base = self.samples(best, objective), self.samples(self.default_candidate, objective)
        if not samples or not base:
            raise NothingMeasured(f"{objective.name} was not measured for both trial {best.trial} and the default.")
        return estimates.gain(objective.name, objective.direction, best.trial, samples, base, self.noise(objective))

    def hypervolume(self) -> Volume:
        """Hypervolume after each trial under one reference point over all feasible trials. Raises NothingMeasured."""
        scored = [(record, found) for record in self.records if (found := self.score(record)) and found.feasible]
        points = {record.number: found.values for record, found in scored if self.forbidden(record.configuration) is None}
        if not points:
            raise NothingMeasured(f"Study {self.name!r} has no trial that was measured and keeps the constraints and rules.")
        reference = pareto.nadir_reference(list(points.values()), self.directions)
        numbers = sorted({record.number for record in self.records})
        values = pareto.hypervolume_history([points.get(number) for number in numbers], self.directions, reference)
        return Volume(reference, dict(zip(numbers, values, strict=True)))

    def knee(self) -> int:
        """The front's knee. Raises NothingMeasured."""
        index = pareto.knee([self.point(one) for one in self.feasible], self.directions)
        if index is None:
            raise self._nothing()
        return self.feasible[index].trial

    def best(self, metric: str) -> int:
        """The feasible trial that is best in a metric; within noise one that was measured again, then fewer overrides, less memory.

        A trial whose number depends on when it was measured is best only where no steady one is known.
        Raises NothingMeasured, InvalidInput.
        """
        objective = self.objective(metric)
        noise = self.noise(objective)
        known = [(one, samples) for one in self.feasible if (samples := self.samples(one, objective))]
        if not known:
            raise self._nothing()
        sign = 1 if objective.direction == "minimize" else -1
        shaky = {one.trial for one, _ in known if not _steady(one, objective)}
        leader, samples = min(known, key=lambda pair: (pair[0].trial in shaky, sign * estimates.mean(pair[1], noise)))
        lead = _interval(samples, noise)
        equal = [one for one, other in known if one is leader or (noise is not None and lead.overlaps(_interval(other, noise)))]

        def preference(one: Candidate) -> tuple[bool, bool, int, float, bool]:
            first = one.records[0]
            return one.trial in shaky, len(one.records) < 2, len(first.configuration.values), _memory(one), one is not leader

        return min(equal, key=preference).trial

    def candidate(self, trial: int) -> Candidate:
        """The measured configuration that a trial ran. Raises NotFound, NothingMeasured."""
        record = self.record(trial)
        for one in self.candidates:
            if one.digest == record.configuration.digest:
                return one
        raise NothingMeasured(f"Trial {trial} of study {self.name!r} was not measured: {self.outcome(record)}.")

    def objective(self, metric: str) -> Objective:
        """A metric as an objective: the study's own, or one with the metric table's direction. Raises InvalidInput."""
        for objective in self.study.objectives:
            if metric in (objective.name, objective.selector.metric):
                return objective
        try:
            selector = Selector.parse(metric)
        except ValueError as error:
            raise InvalidInput([Mistake(path="", problem=sentence(str(error)))]) from None
        direction = lookup(selector.metric).direction
        return Objective(selector=selector, direction="minimize" if direction == "minimize" else "maximize")

    def samples(self, one: Candidate, objective: Objective) -> list[float]:
        """The metric in each run of a configuration; runs that lack it are left out.

        A configuration that was measured again as a finalist is judged by those runs alone: it became one by the luck of
        its search run, which would overstate it.
        """
        runs = [record for record in one.records if record.origin is Origin.FINALIST] or one.records
        return [value for record in runs if (value := self.value(record, objective)) is not None]

    def value(self, record: TrialRecord, objective: Objective) -> float | None:
        """The metric in one run; None where it was not measured."""
        return _value(record, objective)

    def mean(self, one: Candidate, objective: Objective) -> float:
        """The metric over a configuration's runs."""
        return estimates.mean(self.samples(one, objective), self.noise(objective))

    def noise(self, objective: Objective) -> Noise | None:
        """Run-to-run noise of a metric, pooled over every configuration that was measured more than once."""
        if objective.name not in self._noise:
            self._noise[objective.name] = estimates.pooled(self.samples(one, objective) for one in self.candidates)
        return self._noise[objective.name]

    def interval(self, one: Candidate, objective: Objective) -> Interval | None:
        """A configuration's 95 % interval of a metric; None where it or its noise was not measured."""
        samples = self.samples(one, objective)
        return estimates.estimate(samples, self.noise(objective)) if samples else None

    def point(self, one: Candidate) -> tuple[float, ...]:
        """Its objective values, means over its runs."""
        return tuple(cell.estimate for cell in self.interval_point(one))

    def interval_point(self, one: Candidate) -> tuple[Interval, ...]:
        """Its objectives with their intervals, of no width where the noise is unknown."""
        return tuple(_interval(self.samples(one, objective), self.noise(objective)) for objective in self.study.objectives)

    def unsteady(self, record: TrialRecord) -> tuple[str, ...]:
        """Why a trial's scored numbers depend on when they were measured, level by level; empty for a steady trial."""
        found = record.measurement
        return () if found is None else unsteady(found, self.study.objectives, self.study.constraints)

    def score(self, record: TrialRecord) -> Score | None:
        """A trial's score; None for a failed one or one that lacks a number the study needs."""
        found = self.judged(record)
        return None if isinstance(found, Failed) else found

    def failure(self, record: TrialRecord) -> Failed | None:
        """Why a trial has no score: it failed, or what it measured lacks a number the study needs."""
        found = self.judged(record)
        return found if isinstance(found, Failed) else None

    def outcome(self, record: TrialRecord) -> str:
        """The one word for how a trial ended, wherever it is shown: `measured`, or the kind of failure."""
        failed = self.failure(record)
        return "measured" if failed is None else str(failed.kind)

    def judged(self, record: TrialRecord) -> Score | Failed:
        """A trial's score, or why it has none."""
        if isinstance(record.outcome, Failed):
            return record.outcome
        try:
            return score(record.outcome.measurement, self.study.objectives, self.study.constraints)
        except TrialFailed as error:
            return error.failed

    def _candidate(self, digest: str, runs: Sequence[TrialRecord]) -> Candidate | None:
        scored = [(record, found) for record in runs if (found := self.score(record)) is not None]
        if not scored:
            return None
        kept = all(excess <= 0 for excess in _broken_by(scored))
        sound = not any(self.score(record) is None and _own_fault(record) for record in runs)
        check = self.quality.check(runs[0].configuration)
        faithful = check is None or check.answer != "failed"
        measured, rule = tuple(record for record, _ in scored), self.forbidden(runs[0].configuration)
        return Candidate(measured[0].number, digest, measured, kept and sound and faithful, rule)

    def _nothing(self) -> NothingMeasured:
        if not self.candidates:
            return NothingMeasured(f"No trial of study {self.name!r} was measured.")
        rules = " and its own rules" if any(one.holds for one in self.candidates) else ""
        return NothingMeasured(f"No measured trial of study {self.name!r} keeps all its constraints{rules}.{self._nearest()}")

    def _nearest(self) -> str:
        """Which configuration breaks the constraints least, by the sum of what it lacks of each; empty when that is not why."""
        broken = [(one.trial, excess) for one in self.candidates if any(excess := self._excess(one))]
        if not broken:
            return ""
        trial, excess = min(broken, key=lambda found: sum(found[1]))
        told = [f"{bound.name} by {by:.1%}" for bound, by in zip(self.study.constraints, excess, strict=True) if by > 0]
        return f" Trial {trial} comes nearest: it breaks {' and '.join(told)}."

    def _excess(self, candidate: Candidate) -> tuple[float, ...]:
        """By how much of its limit a configuration breaks each constraint; 0 where it keeps it."""
        scored = [(record, found) for record in candidate.records if (found := self.score(record)) is not None]
        return tuple(max(0.0, excess) for excess in _broken_by(scored))


def short(configuration: Configuration, limit: int = 60) -> str:
    """A configuration's overrides on one line, secrets masked."""
    text = redact(", ".join(f"{name}={value}" for name, value in configuration.values.items()) or "default")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def phases(record: TrialRecord) -> dict[str, float]:
    """Seconds by phase without overlap: a phase that was split (`start.imports`) by its parts and what they leave."""
    flat: dict[str, float] = {}
    for phase, seconds in record.seconds.items():
        if "." in phase:
            continue
        parts = {name: part for name, part in record.seconds.items() if name.startswith(f"{phase}.")}
        rest = seconds - sum(parts.values())
        # Parts that overlap one another exceed the whole, and say nothing about how it divides.
        flat |= {phase: seconds} if not parts or rest < -0.01 * seconds else {**parts, f"{phase}, rest": max(rest, 0.0)}
    return flat


def total_seconds(record: TrialRecord) -> float | None:
    """Wall seconds of a trial; None when none were kept."""
    whole = [seconds for phase, seconds in record.seconds.items() if "." not in phase]
    return sum(whole) if whole else None


def _value(record: TrialRecord, objective: Objective) -> float | None:
    if record.measurement is None:
        return None
    try:
        return value_of(record.measurement, objective.selector)
    except TrialFailed:
        return None


def _own_fault(record: TrialRecord) -> bool:
    """Whether a run without a score failed, or served a level invalidly, for a reason that is the configuration's own."""
    if isinstance(record.outcome, Failed):
        return record.outcome.kind.deterministic and record.outcome.kind is not FailureKind.ENDED_EARLY
    return any(row.invalid is not None and CLIENT_LATE not in row.invalid for row in record.outcome.measurement.rows)


def _broken_by(scored: Sequence[tuple[TrialRecord, Score]]) -> list[float]:
    """The mean violation of each constraint, over a finalist's runs where there are any."""
    judged = [found for record, found in scored if record.origin is Origin.FINALIST] or [found for _, found in scored]
    return [fmean(column) for column in zip(*(found.violations for found in judged), strict=True)]


def _interval(samples: Sequence[float], noise: Noise | None) -> Interval:
    centre = estimates.mean(samples, noise)
    return estimates.estimate(samples, noise) or Interval(centre, centre, centre)


def _steady(one: Candidate, objective: Objective) -> bool:
    """Whether any of its runs measured the objective in a steady window."""
    return any(record.measurement is not None and not unsteady(record.measurement, [objective]) for record in one.records)


def _memory(one: Candidate) -> float:
    """Highest peak memory of its runs; infinite where it was not measured, so that the measured one is preferred."""
    names = ("peak_gpu_memory_gib", "peak_memory_gib")
    totals = [record.measurement.totals for record in one.records if record.measurement is not None]
    return max((total[name] for total in totals for name in names if name in total), default=float("inf"))
