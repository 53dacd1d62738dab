"""Which trials are due again: what the machine or the end of a driver cost a trial says nothing of its configuration."""

from __future__ import annotations

from collections.abc import Iterable

from autotune.ledger import Ledger
from autotune.trial import Failed, FailureKind, Phase, TrialJob, TrialRecord

MAX_ATTEMPTS = 3
"""A trial that ran at this many deaths of its driver is taken for their cause; ends that somebody asked for are no deaths."""
RETRIES = 1
"""How often a machine's fault is tried again."""
_LOST = "lost to the machine"
"""The ledger's note of trials that ran while the machine failed every one."""
_STOPPED = "stopped"
"""The ledger's note of attempts that were ended because the study was told to stop."""


class Retries:
    """One rule for a study that runs and for one that is resumed, read off its ledger."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        """`seed` is that of the search's trials."""
        self._ledger, self._seed = ledger, seed

    def after(self, record: TrialRecord) -> TrialJob | None:
        """The next attempt at a record's trial; None where the record stands."""
        if not isinstance(record.outcome, Failed) or not self._due(record.outcome.kind, record):
            return None
        fields = record.model_dump(include={"number", "configuration", "origin", "point"})
        return TrialJob(**fields, attempt=record.attempt + 1, seed=self._seed_of(record))

    def owed(self) -> list[TrialJob]:
        """What earlier runs of the study left due, by number. An attempt without a record was interrupted with its driver;
        where that happened too often, its trial is given a record now that says so. One that never began to run is due as it was.
        """
        for job in self._ran():
            if self._own(job) >= MAX_ATTEMPTS:
                self._ledger.record(self._ended(job, FailureKind.MACHINE_FAULT))
        cut_off = {job.number: self._ended(job, FailureKind.INTERRUPTED) for job in self._ran()}
        again = {number: self.after(record) for number, record in {**self._ledger.records, **cut_off}.items()}
        again |= {job.number: job for job in self._ledger.in_flight if job.number in self._ledger.waiting}
        return [job for _, job in sorted(again.items()) if job is not None]

    def _ran(self) -> list[TrialJob]:
        """Attempts that began to run and have no record."""
        return [job for job in self._ledger.in_flight if job.number not in self._ledger.waiting]

    def stopped(self) -> None:
        """Note that what runs is being ended because the study was told to stop, which is held against no trial."""
        if ran := self._ran():
            self._ledger.note(_STOPPED, {"attempts": {str(job.number): job.attempt for job in ran}})

    def give_up(self, lost: Iterable[TrialRecord]) -> None:
        """Note the trials that a failing machine cost, so that the study gets them back once it is mended."""
        self._ledger.note(_LOST, {"attempts": {str(record.number): record.attempt for record in lost}})

    def _due(self, kind: FailureKind, record: TrialRecord) -> bool:
        if kind is FailureKind.INTERRUPTED:
            return self._own(record) < MAX_ATTEMPTS
        return kind is FailureKind.MACHINE_FAULT and (self._own(record) <= RETRIES or self._lost(record))

    def _own(self, attempt: TrialJob | TrialRecord) -> int:
        """How many attempts at a trial ended by themselves, the given one included unless it was stopped."""
        notes = [note.payload["attempts"] for note in self._ledger.notes if note.kind == _STOPPED]
        return attempt.attempt - len({ended[str(attempt.number)] for ended in notes if str(attempt.number) in ended})

    def _lost(self, record: TrialRecord) -> bool:
        attempts = [note.payload["attempts"] for note in self._ledger.notes if note.kind == _LOST]
        return any(lost.get(str(record.number)) == record.attempt for lost in attempts)

    def _seed_of(self, record: TrialRecord) -> int:
        """A finalist's is that of its round, so that it meets the arrivals that the others of the round met."""
        rounds = [job for note in self._ledger.notes if note.kind == "finalists" for job in note.payload["jobs"]]
        return next((job["seed"] for job in rounds if job["number"] == record.number), self._seed)

    def _ended(self, job: TrialJob, kind: FailureKind) -> TrialRecord:
        """What is known of an attempt that its driver did not outlive."""
        evidence = f"The driver died {self._own(job)} times while this trial ran, which is taken for the cause."
        return job.ended(Failed(kind=kind, phase=Phase.START, evidence=(evidence,)))
