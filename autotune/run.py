"""The loop: ask, submit, collect, score, tell, track. The only module that imports all rooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune import executors, export, policy, process, results, tracking
from autotune.agenda import Agenda
from autotune.errors import AutotuneError, Interrupted, NothingMeasured
from autotune.executors.base import Executor, Site
from autotune.export import Written
from autotune.finalists import Verdict, verdicts
from autotune.interrupts import Interrupts
from autotune.ledger import Ledger
from autotune.live import Reporter
from autotune.plan import Plan
from autotune.results import StudyResults
from autotune.secrets import redact
from autotune.trial import TrialJob, TrialRecord

Source = Callable[[], TrialJob | TrialRecord | None]
_TICK_S = 0.5
_FLUSH_S = 30.0


@dataclass(frozen=True)
class Finished:
    """What a run ends with. `tracking` says how to look at it, or that the server is behind."""

    results: StudyResults
    reason: str
    verdicts: tuple[Verdict, ...] = ()
    exports: tuple[Written, ...] = ()
    tracking: tuple[str, ...] = ()


def run(plan: Plan, *, fresh: bool = False, cold: bool = False, reporter: Reporter) -> Finished:
    """Run a study to its end, or continue it. Raises Interrupted, StudyBusy, StoreUnwritable, NothingMeasured."""
    with Ledger(plan.folder, redact(plan.text.text), plan.study.identity, fresh=fresh) as ledger:
        for reaped in process.reap(plan.store):
            reporter.say(f"Ended what an earlier run left behind: {reaped}.")
        policy.same_engines(plan, ledger)
        ledger.note("engines", {kind: identity.model_dump(mode="json") for kind, identity in plan.identities.items()})
        tracker = tracking.Tracker(plan.store, plan.study) if plan.study.tracking.enabled else None
        with Interrupts(reporter.say) as interrupts:
            try:
                agenda = Agenda(plan, ledger, policy.driver(plan, ledger, cold, reporter.say), reporter.say)
                site = Site(
                    engines=plan.engines,
                    workload=plan.workload,
                    store=plan.store,
                    study=plan.study.name,
                    parallel=plan.study.executor.parallel,
                    address=plan.study.executor.address,
                    watch=lambda job, label, share: reporter.progress(job.number, label, share),
                )
                if tracker is not None:
                    tracker.study_started()
                with executors.make(_executor(plan), site) as executor:
                    _Loop(agenda, executor, interrupts, reporter, tracker).run()
            finally:
                reporter.close()
                _closed(tracker, interrupts)
        if interrupts.stopping:
            raise Interrupted(
                f"The study {plan.study.name!r} was stopped. Continue it with the same command; nothing measured was lost."
            )
    return _finished(plan, agenda, tracker)


class _Loop:
    """Keeps the executor full until the agenda is empty or the user stops it."""

    def __init__(
        self, agenda: Agenda, executor: Executor, interrupts: Interrupts, reporter: Reporter, tracker: tracking.Tracker | None
    ) -> None:
        self.agenda, self.executor, self.interrupts, self.reporter, self.tracker = agenda, executor, interrupts, reporter, tracker

    def run(self) -> None:
        """The search, then the finalists beside the default."""
        trials = self.agenda.plan.study.budget.trials
        self.reporter.expect(trials, None)
        self.work(self.agenda.next)
        for sentence in policy.prior_says(self.agenda.plan, self.agenda.ledger.records.values()):
            self.reporter.say(sentence)
        if not self.interrupts.stopping and self.agenda.stopped is not None and (left := self.agenda.plan_finals()):
            self.reporter.say(f"{self.agenda.stopped} The front is now measured again beside the default: {left} trials.")
            self.reporter.expect(trials + left, None)
            self.work(self.agenda.next_final)

    def work(self, source: Source) -> None:
        """Run what the source gives until it gives no more."""
        while not self.interrupts.now:
            self.fill(source)
            if not self.executor.running():
                return
            record = self.executor.collect(_TICK_S)
            for notice in self.executor.notices():
                self.reporter.say(notice)
            if record is not None:
                self.keep(record)

    def fill(self, source: Source) -> None:
        """Start trials while there is room."""
        while not self.interrupts.stopping and len(self.executor.running()) < self.executor.capacity:
            found = source()
            if found is None:
                return
            if isinstance(found, TrialJob):
                self.executor.submit(found)
                self.reporter.started(found)
            else:
                self.keep(found)

    def keep(self, record: TrialRecord) -> None:
        """A record into the ledger, then to everyone who wants to know."""
        found = self.agenda.finished(record)
        self.reporter.finished(record, found)
        if self.tracker is not None:
            self.tracker.trial(record)


def _executor(plan: Plan) -> str:
    recorded = all(engine.serves == "recorded" for engine in plan.engines.values())
    return plan.study.executor.kind if plan.study.executor.kind != "auto" else "inline" if recorded else "local"


def _closed(tracker: tracking.Tracker | None, interrupts: Interrupts) -> None:
    """Let the tracking server catch up for a while; what it misses is sent at the next run."""
    if tracker is not None:
        if interrupts.stopping:
            tracker.finished("KILLED")
        tracker.flush(2.0 if interrupts.now else _FLUSH_S)
        if interrupts.stopping:
            tracker.close()


def _finished(plan: Plan, agenda: Agenda, tracker: tracking.Tracker | None) -> Finished:
    found = results.load(plan.study.name, plan.store)
    written: list[Written] = []
    said: list[str] = []
    for name in plan.study.export:
        try:
            written.append(export.export(found, name, store=plan.store))
        except NothingMeasured:
            break
        except AutotuneError as error:
            said.append(f"The export to {name} failed: {error}")
    if tracker is not None:
        tracker.finished("FINISHED", files=[path for one in written for path in one.files])
        tracker.flush(_FLUSH_S)
        behind = tracker.status()
        tracker.close()
        said.append(behind or f"Compare the trials in MLflow: autotune ui --store {plan.store}")
    reason = agenda.stopped or "The study is over."
    return Finished(found, reason, tuple(verdicts(found, agenda.finals)), tuple(written), tuple(said))
