"""The loop of a study: ask, submit, collect, keep, track."""

from __future__ import annotations

from collections.abc import Callable

from autotune import policy, tracking
from autotune.agenda import Agenda
from autotune.errors import MachineUnusable
from autotune.executors.base import Executor
from autotune.interrupts import Interrupts
from autotune.live import Reporter
from autotune.trial import Failed, FailureKind, TrialJob, TrialRecord

Source = Callable[[], TrialJob | TrialRecord | None]
_TICK_S = 0.5
_FAULTS = 5
"""Machine faults in a row after which a study stops, or twice what runs at once where that is more."""


class Loop:
    """Keeps the executor full until the agenda is empty or the user stops it."""

    def __init__(
        self, agenda: Agenda, executor: Executor, interrupts: Interrupts, reporter: Reporter, tracker: tracking.Tracker | None
    ) -> None:
        self.agenda, self.executor, self.interrupts, self.reporter, self.tracker = agenda, executor, interrupts, reporter, tracker
        self.faults: list[TrialRecord] = []
        """Attempts that the machine failed since anything else came of one."""
        self.most = 0
        """What ran at once when most did: a part of the machines that dies fails all of its trials together."""

    def run(self) -> None:
        """The search, then the finalists beside the default. Raises MachineUnusable, StoreUnwritable."""
        self.expect()
        self.work(self.agenda.next)
        for sentence in policy.prior_says(self.agenda.plan, self.agenda.ledger.records.values()):
            self.reporter.say(sentence)
        if not self.interrupts.stopping and self.agenda.stopped is not None and (left := self.agenda.plan_finals()):
            self.reporter.say(f"{self.agenda.stopped} The front is now measured again beside the default: {left} trials.")
            self.expect()
            self.work(self.agenda.next_final)

    def expect(self) -> None:
        """Tell the reporter how much is to come."""
        self.reporter.expect(*self.agenda.progress(), self.executor.capacity)

    def work(self, source: Source) -> None:
        """Run what the source gives until it gives no more."""
        while not self.interrupts.now:
            if self.interrupts.stopping:
                self.executor.withdraw()
            self.fill(source)
            if not self.executor.running():
                if not self.executor.capacity and not self.interrupts.stopping:
                    raise _unusable("Nothing is left to run trials on." + self.lately())
                return
            record = self.executor.collect(_TICK_S)
            for notice in self.executor.notices():
                self.reporter.say(notice)
            if record is not None:
                self.keep(record)
        self.agenda.retries.stopped()

    def fill(self, source: Source) -> None:
        """Start trials while there is room."""
        while not self.interrupts.stopping and len(self.executor.running()) < self.executor.capacity:
            self.give_up()
            found = source()
            if found is None:
                return
            if isinstance(found, TrialJob):
                self.executor.submit(found)
                self.reporter.started(found)
            else:
                self.keep(found)

    def give_up(self) -> None:
        """A machine that fails every trial would fail the rest too. Raises MachineUnusable."""
        self.most = max(self.most, self.executor.capacity)
        if len(self.faults) >= max(_FAULTS, 2 * self.most):
            assert isinstance(self.faults[-1].outcome, Failed)
            self.agenda.retries.give_up(self.faults)
            why = "; ".join(self.faults[-1].outcome.evidence[:2])
            raise _unusable(
                f"The last {len(self.faults)} attempts at trials failed by the machine's fault, the last one with: {why}"
            )

    def lately(self) -> str:
        """What the machine failed the last trial with, as a sentence; empty where that ended otherwise."""
        outcome = self.faults[-1].outcome if self.faults else None
        return f" The last trial ended with: {' '.join(outcome.evidence)}" if isinstance(outcome, Failed) else ""

    def keep(self, record: TrialRecord) -> None:
        """A record into the ledger, then to everyone who wants to know."""
        found = self.agenda.finished(record)
        self.faults = [*self.faults, record] if _machine_failed(record) else []
        self.reporter.finished(record, found)
        self.expect()
        if self.tracker is not None:
            self.tracker.trial(record)


def _machine_failed(record: TrialRecord) -> bool:
    return isinstance(record.outcome, Failed) and record.outcome.kind is FailureKind.MACHINE_FAULT


def _unusable(why: str) -> MachineUnusable:
    return MachineUnusable(f"{why} Mend it and continue with the same command; nothing measured was lost.")
