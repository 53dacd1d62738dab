"""What a study's trials say together: candidates, front with ties, gain over the default, hypervolume, knee. Pure.

A configuration that was measured several times (default, baselines, finalists) is one candidate: the mean of its runs,
with an interval from the noise pooled over all repeats of the study (`estimates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from autotune import estimates, pareto
from autotune.candidate import Candidate, own_fault, value
from autotune.errors import InvalidInput, Mistake, NotFound, NothingMeasured
from autotune.estimates import Gain, Noise
from autotune.metrics import lookup
from autotune.pareto import Direction
from autotune.quality import Guard, Review
from autotune.rules import OwnRules, StudyRule
from autotune.score import Objective, Score, Selector, judged, unsteady
from autotune.secrets import redact
from autotune.stats import Interval
from autotune.study import Study
from autotune.trial import Configuration, Failed, Origin, TrialRecord
from autotune.validation import sentence


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

    def along_front(self, most: int) -> list[Candidate]:
        """The front's members by their first objective; of more than `most`, two at least, an even choice with both ends."""
        members = [self.feasible[index] for index in self.noisy_front.members]
        ordered = sorted(members, key=lambda one: self.point(one)[0])
        if len(ordered) <= most:
            return ordered
        return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]

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
        samples, base = best.samples(objective), self.default_candidate.samples(objective)
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
        known = [(one, samples) for one in self.feasible if (samples := one.samples(objective))]
        if not known:
            raise self._nothing()
        sign = 1 if objective.direction == "minimize" else -1
        shaky = {one.trial for one, _ in known if not one.steady(objective)}
        leader, samples = min(known, key=lambda pair: (pair[0].trial in shaky, sign * estimates.mean(pair[1], noise)))
        lead = _interval(samples, noise)
        equal = [one for one, other in known if one is leader or (noise is not None and lead.overlaps(_interval(other, noise)))]

        def preference(one: Candidate) -> tuple[bool, bool, int, float, bool]:
            first = one.records[0]
            return one.trial in shaky, len(one.records) < 2, len(first.configuration.values), one.peak_memory_gib, one is not leader

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

    def value(self, record: TrialRecord, objective: Objective) -> float | None:
        """The metric in one run; None where it was not measured."""
        return value(record, objective)

    def mean(self, one: Candidate, objective: Objective) -> float:
        """The metric over a configuration's runs."""
        return estimates.mean(one.samples(objective), self.noise(objective))

    def noise(self, objective: Objective) -> Noise | None:
        """Run-to-run noise of a metric, pooled over every configuration that was measured more than once."""
        if objective.name not in self._noise:
            self._noise[objective.name] = estimates.pooled(one.samples(objective) for one in self.candidates)
        return self._noise[objective.name]

    def interval(self, one: Candidate, objective: Objective) -> Interval | None:
        """A configuration's 95 % interval of a metric; None where it or its noise was not measured."""
        samples = one.samples(objective)
        return estimates.estimate(samples, self.noise(objective)) if samples else None

    def point(self, one: Candidate) -> tuple[float, ...]:
        """Its objective values, means over its runs."""
        return tuple(cell.estimate for cell in self.interval_point(one))

    def interval_point(self, one: Candidate) -> tuple[Interval, ...]:
        """Its objectives with their intervals, of no width where the noise is unknown."""
        return tuple(_interval(one.samples(objective), self.noise(objective)) for objective in self.study.objectives)

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
        return judged(record.outcome, self.study.objectives, self.study.constraints)

    def _candidate(self, digest: str, runs: Sequence[TrialRecord]) -> Candidate | None:
        scored = [(record, found) for record in runs if (found := self.score(record)) is not None]
        if not scored:
            return None
        sound = not any(self.score(record) is None and own_fault(record) for record in runs)
        check = self.quality.check(runs[0].configuration)
        faithful = check is None or check.answer != "failed"
        records, scores = zip(*scored, strict=True)
        return Candidate(records[0].number, digest, records, scores, sound and faithful, self.forbidden(runs[0].configuration))

    def _nothing(self) -> NothingMeasured:
        if not self.candidates:
            return NothingMeasured(f"No trial of study {self.name!r} was measured.")
        rules = " and its own rules" if any(one.holds for one in self.candidates) else ""
        return NothingMeasured(f"No measured trial of study {self.name!r} keeps all its constraints{rules}.{self._nearest()}")

    def _nearest(self) -> str:
        """Which configuration breaks the constraints least, by the sum of what it lacks of each; empty when that is not why."""
        broken = [(one.trial, excess) for one in self.candidates if any(excess := one.excess)]
        if not broken:
            return ""
        trial, excess = min(broken, key=lambda found: sum(found[1]))
        told = [f"{bound.name} by {by:.1%}" for bound, by in zip(self.study.constraints, excess, strict=True) if by > 0]
        return f" Trial {trial} comes nearest: it breaks {' and '.join(told)}."


def short(configuration: Configuration, limit: int = 60) -> str:
    """A configuration's overrides on one line, secrets masked."""
    text = redact(", ".join(f"{name}={value}" for name, value in configuration.values.items()) or "default")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _interval(samples: Sequence[float], noise: Noise | None) -> Interval:
    centre = estimates.mean(samples, noise)
    return estimates.estimate(samples, noise) or Interval(centre, centre, centre)
