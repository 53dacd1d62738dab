"""What a study runs next: interrupted trials, retries, the default again, and what the search proposes, within the budget."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections import deque
from collections.abc import Callable
from pathlib import Path

from autotune import cache, finalists, gpu
from autotune.bar import Bar
from autotune.feasibility.cut import Cut
from autotune.ledger import Ledger
from autotune.plan import Plan
from autotune.results import StudyResults
from autotune.retries import Retries
from autotune.score import Reached, Score, judged, reached
from autotune.search.driver import Driver, Proposal
from autotune.search.screening import Screening, trials_affordable
from autotune.search.stopping import GROWTH, flat
from autotune.standings import Standings
from autotune.trial import Configuration, Failed, FailureKind, Origin, TrialJob, TrialRecord

_SEARCHED = (Origin.SEARCH, Origin.AUDIT, Origin.WARM_START)
"""Trials that nobody asked for by name: these may be ended early."""
_NOT_MEASURED = {"kind", "model", "fixed", "env", "python", "start_timeout_s", "stop_timeout_s"}
"""Fields of an engine's section that have a place of their own in a trial's address, or change nothing that is measured."""


class Agenda:
    """Keeps ledger and search in step. Made from what the ledger holds, so that an interrupted study goes on."""

    def __init__(self, plan: Plan, ledger: Ledger, driver: Driver, say: Callable[[str], None]) -> None:
        self.plan, self.ledger, self.driver, self.say = plan, ledger, driver, say
        self.retries = Retries(ledger, plan.study.search.seed)
        self.waiting: deque[TrialJob] = deque()
        self.stopped: str | None = None
        """Why the search is over, once it is."""
        self.finals: list[TrialJob] = []
        """The finalists' rounds, once they are planned."""
        self.screening = Screening(plan.study)
        self.standings = Standings(plan.study.objectives, plan.study.constraints, plan.study.search.probe_s)
        self._rules = plan.own_rules
        self._restore()

    def next(self) -> TrialJob | TrialRecord | None:
        """The next job, begun in the ledger; or the record of an equal trial that need not run; None when the search is over."""
        job = self.waiting.popleft() if self.waiting else self._proposed()
        if job is None:
            return None
        job = self._begun(job)
        return self._known(job) or job

    def next_final(self) -> TrialJob | None:
        """The next job of the finalists' rounds; None when they are over."""
        left = finalists.remaining(self.finals, self.ledger.records)
        begun = {job.number for job in self.ledger.in_flight}
        job = self.waiting.popleft() if self.waiting else next((job for job in left if job.number not in begun), None)
        return None if job is None else self._begun(job)

    def plan_finals(self) -> int:
        """Plan the finalists' rounds, or take up those that an earlier run planned and what this one asks for beyond them;
        returns how many trials are left of them."""
        searched = self._searched()
        self.finals, _ = finalists.planned(self.ledger.notes, searched)
        spec, number = self.plan.study.finalists, self.driver.next_number
        planned = bool(self.finals)
        if planned:
            added = finalists.further(self.finals, spec, number, self.seed)
        else:
            analysis = StudyResults(self.plan.study, tuple(self.ledger.records.values()), notes=tuple(self.ledger.notes))
            added = finalists.plan(analysis, spec, number, self.seed)
        if added or not planned:
            self.finals += added
            rounds = finalists.Rounds(searched=searched, jobs=tuple(self.finals))
            self.ledger.note(finalists.NOTE, rounds.model_dump(mode="json"))
        return len(finalists.remaining(self.finals, self.ledger.records))

    def finished(self, record: TrialRecord) -> Score | Failed:
        """Keep a record, teach the search, and queue a retry where one is due. Returns the trial's score, or why it has none."""
        self.ledger.record(record, self.key(record.configuration))
        found = self.judged(record)
        for sentence in self._tell(record, found):
            self.say(sentence)
        if (again := self.retries.after(record)) is not None:
            self._take_up(again)
        return found

    def judged(self, record: TrialRecord) -> Score | Failed:
        """A trial's score, or why it has none."""
        return judged(record.outcome, self.plan.study.objectives, self.plan.study.constraints)

    def bar(self, job: TrialJob) -> Bar | None:
        """What a trial that begins now has to be able to reach; None for one that is to be measured whatever it reaches."""
        return self.standings.bar() if self.plan.study.search.early_exit and job.origin in _SEARCHED else None

    @property
    def seed(self) -> int:
        """Every trial of the search meets the same arrivals and lengths, so that configurations differ and traffic does not."""
        return self.plan.study.search.seed

    def key(self, configuration: Configuration) -> str | None:
        """The trial cache's address; None when the engine, or what the machine of its trials has, is not known here."""
        identity = self.plan.identities.get(configuration.engine)
        if identity is None or self.plan.study.executor.kind == "ray":
            return None
        engine = self.plan.engines[configuration.engine]
        return cache.trial_key(
            model=engine.model_digest(self.plan.cache),
            engine=identity.model_dump(mode="json"),
            hardware={**hardware(), **self.plan.study.executor.model_dump(mode="json", include={"kind", "parallel"})},
            workload=self.plan.workload.options.model_dump(mode="json"),
            configuration=configuration,
            fixed=engine.options.fixed,
            env=engine.options.env,
            options=engine.options.model_dump(mode="json", exclude=_NOT_MEASURED),
        )

    def spent_minutes(self) -> float:
        """GPU-minutes of everything run so far, failed attempts included; minutes of running trials where there is no GPU."""
        return self.ledger.history.gpu_minutes

    def progress(self) -> tuple[int, int, int]:
        """How many trials are done, how many of the search are to come at most, and how many of the finalists' rounds.

        What is tried again is to come. Of the search no more is than the GPU-minutes buy at a trial's mean cost so far.
        """
        origins, records = self.ledger.history.origins, self.ledger.records
        again = [job.origin for job in self.waiting if job.number in records]
        done = origins.total() - len(again)
        if self.finals:
            return done, 0, len(finalists.remaining(self.finals, records))
        searched = done - origins[Origin.FINALIST] + again.count(Origin.FINALIST)
        left = max(0, self.plan.study.search_trials - searched)
        runs = len(records) + len(self.ledger.history.earlier)
        bought = trials_affordable(self.spent_minutes() / max(1, runs), self.plan.study.budget.gpu_minutes, self.spent_minutes())
        return done, left if bought is None else min(left, math.ceil(bought)), self.plan.study.finalists.trials

    def _begun(self, job: TrialJob) -> TrialJob:
        """The job as it begins, with what earlier trials tell it."""
        told = job.model_copy(update={"climb_from": self.standings.climb_from(job.configuration)})
        self.ledger.begin(told)
        return told

    def _restore(self) -> None:
        known = set(self.ledger.records)
        owed = self.retries.owed()
        for number in sorted(set(self.ledger.records) - known):
            outcome = self.ledger.records[number].outcome
            assert isinstance(outcome, Failed)
            self.say(f"Trial {number} is not run again: {outcome.evidence[0]}")
        for note in self.ledger.notes:
            if note.kind == "cut":
                self.driver.cut(Cut.model_validate(note.payload))
        for number in sorted(self.ledger.records):
            record = self.ledger.records[number]
            self._tell(record, self.judged(record))
        for job in self.ledger.in_flight:
            self.driver.begin(job.number, job.configuration, job.point)
        for job in owed:
            self._take_up(job)

    def _take_up(self, job: TrialJob) -> None:
        """Have an attempt run that is due again; until then the search does not propose its configuration as another trial."""
        self.waiting.append(job)
        self.driver.begin(job.number, job.configuration, job.point)

    def _tell(self, record: TrialRecord, judged: Score | Failed) -> list[str]:
        """Teach everyone who learns from a trial; returns what the screening has to say of it."""
        found, wanted = judged if isinstance(judged, Score) else None, self._wanted(record)
        self.standings.hear(record, found, wanted)
        self.driver.tell(record, found or self._reached(record))
        for sentence in self.driver.notes:
            self.say(sentence)
        self.driver.notes.clear()
        return self.screening.hear(record, found, wanted)

    def _wanted(self, record: TrialRecord) -> bool:
        """Whether no rule of the study's own forbids what was run: its default may break one, and so may what was run before
        a rule was added."""
        return self._rules[record.configuration.engine].forbid(record.configuration) is None

    def _reached(self, record: TrialRecord) -> Reached | None:
        """How far a trial that was ended early had got; None for any other."""
        outcome = record.outcome
        if not isinstance(outcome, Failed) or outcome.kind is not FailureKind.ENDED_EARLY or outcome.partial is None:
            return None
        return reached(outcome.partial, self.plan.study.objectives, self.plan.study.constraints)

    def _proposed(self) -> TrialJob | None:
        self.stopped = self._over()
        if self.stopped is not None:
            return None
        if self._baseline_due():
            number = self.driver.next_number
            configuration = self.plan.defaults()[0]
            self.driver.begin(number, configuration, {})
            return TrialJob(number=number, configuration=configuration, origin=Origin.BASELINE, seed=self.seed)
        return self._asked(self.driver.ask())

    def _asked(self, proposal: Proposal | None) -> TrialJob | None:
        if proposal is None or proposal.duplicate_of is not None:
            self.stopped = "Every configuration of the search space that may be run was run."
            return None
        for cut in proposal.cuts:
            self.ledger.note("cut", cut.model_dump(mode="json"))
        fields = proposal.model_dump(include={"number", "configuration", "origin", "point"})
        return TrialJob(**fields, seed=self.seed)

    def _over(self) -> str | None:
        budget = self.plan.study.budget
        done = self._searched()
        if done >= budget.trials:
            return f"The budget of {budget.trials} trials is spent."
        if budget.gpu_minutes is not None and self.spent_minutes() >= budget.gpu_minutes:
            return f"The budget of {budget.gpu_minutes:g} GPU-minutes is spent."
        plateau = self.plan.study.search.plateau
        if plateau and flat(self.screening.growth.volumes, plateau):
            return f"The last {plateau} trials added less than {GROWTH:.0%} to the hypervolume."
        return None

    def _searched(self) -> int:
        """Trials of the search so far, running ones included."""
        extra = (Origin.FINALIST, Origin.BASELINE)
        kept, origins = self.ledger.records, self.ledger.history.origins
        running = sum(job.origin not in extra and job.number not in kept for job in self.ledger.in_flight)
        return origins.total() - sum(origins[origin] for origin in extra) + running

    def _baseline_due(self) -> bool:
        every = self.plan.study.search.baseline_every
        measured = self.ledger.history.origins[Origin.BASELINE]
        running = sum(job.origin is Origin.BASELINE for job in self.ledger.in_flight)
        return bool(every) and self._searched() // every > measured + running

    def _known(self, job: TrialJob) -> TrialRecord | None:
        """The record of an equal trial of an earlier study, when the study allows its reuse. One that lacks a number which only
        this study needs is none: a climb has no numbers of the rates that it left."""
        key = (
            self.key(job.configuration) if self.plan.study.reuse and job.origin not in (Origin.BASELINE, Origin.FINALIST) else None
        )
        found = cache.find(self.plan.store, key, skip=self.plan.study.name) if key else None
        if found is None or isinstance(self.judged(found), Failed):
            return None
        return found.model_copy(update=job.model_dump(include={"number", "origin", "point", "attempt"}) | {"folder": None})


def hardware() -> dict[str, str]:
    """What a measurement depends on beside software: the GPUs, or the CPU where there are none."""
    found = gpu.devices()
    if found:
        return {f"gpu{device.index}": device.name for device in found}
    return {"cpu": _cpu(), "cores": str(len(os.sched_getaffinity(0)))}


def _cpu() -> str:
    """The processor's product name, which `platform` does not know on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
