"""A study from its ledger to its exports. The only module that imports all rooms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from autotune import executors, export, policy, process, results, source, tracking
from autotune.agenda import Agenda
from autotune.errors import AutotuneError, Interrupted, MachineUnusable, NothingMeasured, StoreUnwritable
from autotune.executors.base import Site
from autotune.export import Written
from autotune.finalists import Verdict, planned, verdicts
from autotune.interrupts import Interrupts
from autotune.ledger import Ledger
from autotune.live import Reporter
from autotune.loop import Loop
from autotune.plan import Plan
from autotune.quality import QUALITY
from autotune.results import RULES, StudyResults

_FLUSH_S = 30.0
_CAN_GO_ON = (Interrupted, MachineUnusable, StoreUnwritable)
"""Ends of a study that runs no more until somebody continues it."""


@dataclass(frozen=True)
class Finished:
    """What a run ends with. `tracking` says how to look at it, or that the server is behind."""

    results: StudyResults
    reason: str
    verdicts: tuple[Verdict, ...] = ()
    exports: tuple[Written, ...] = ()
    tracking: tuple[str, ...] = ()


def run(plan: Plan, *, fresh: bool = False, cold: bool = False, reporter: Reporter) -> Finished:
    """Run a study to its end, or continue it. Raises Interrupted, StudyBusy, StoreUnwritable, MachineUnusable, NothingMeasured."""
    with Ledger(plan.folder, source.masked(plan.text), plan.study.identity, fresh=fresh) as ledger:
        for reaped in process.reap(plan.store):
            reporter.say(f"Ended what an earlier run left behind: {reaped}.")
        policy.same_engines(plan, ledger)
        ledger.note(QUALITY, plan.guard.model_dump(mode="json"))
        ledger.note(RULES, {kind: rules.model_dump(mode="json") for kind, rules in plan.own_rules.items()})
        ledger.note("engines", {kind: identity.model_dump(mode="json") for kind, identity in plan.identities.items()})
        tracker = tracking.Tracker(plan.store, plan.study) if plan.study.tracking.enabled else None
        with Interrupts(reporter.say) as interrupts, _followed(tracker, interrupts), contextlib.closing(reporter):
            agenda = Agenda(plan, ledger, policy.driver(plan, ledger, cold, reporter.say), reporter.say)
            site = Site(
                engines=plan.engines,
                workload=plan.workload,
                store=plan.store,
                study=plan.study.name,
                begun=ledger.history.begun,
                parallel=plan.study.executor.parallel,
                address=plan.study.executor.address,
                watch=lambda job, label, share: reporter.progress(job.number, label, share),
                launched=ledger.launch,
                bar=agenda.bar,
            )
            if tracker is not None:
                tracker.study_started()
            with executors.make(plan.executor, site) as executor:
                Loop(agenda, executor, interrupts, reporter, tracker).run()
            if interrupts.stopping:
                raise Interrupted(
                    f"The study {plan.study.name!r} was stopped. Continue it with the same command; nothing measured was lost."
                )
    return _finished(plan, agenda, tracker)


@contextlib.contextmanager
def _followed(tracker: tracking.Tracker | None, interrupts: Interrupts) -> Iterator[None]:
    """At an early end, let the tracking server catch up for a while; what it misses is sent at the next run."""
    try:
        yield
    except BaseException as error:
        if tracker is not None:
            if isinstance(error, _CAN_GO_ON):
                tracker.finished("KILLED")
            tracker.flush(2.0 if interrupts.now else _FLUSH_S)
            tracker.close()
        raise


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
        said.append(behind or tracking.shown(plan.store, plan.study.tracking))
    reason = agenda.stopped or "The study is over."
    return Finished(found, reason, tuple(verdicts(found, *planned(found.notes))), tuple(written), tuple(said))
