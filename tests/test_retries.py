"""Which trials are due again: by the same rule while a study runs and after its driver died."""

from __future__ import annotations

import pytest

from autotune.ledger import Ledger
from autotune.retries import MAX_ATTEMPTS, Retries
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, TrialJob, TrialRecord

FAULT, INTERRUPTED, CRASHED = FailureKind.MACHINE_FAULT, FailureKind.INTERRUPTED, FailureKind.CRASHED


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "study", "name: s", "digest") as opened:
        yield opened


def job(number: int, attempt: int = 1, **more: object) -> TrialJob:
    return TrialJob(number=number, configuration=Configuration(engine="e", values={"n": number}), attempt=attempt, seed=7, **more)


def ended(one: TrialJob, kind: FailureKind | None) -> TrialRecord:
    measured = Measured(measurement=Measurement(rows=()))
    return one.ended(measured if kind is None else Failed(kind=kind, phase=Phase.MEASURE))


@pytest.mark.parametrize(
    ("kind", "attempt", "again"),
    [
        (None, 1, None),
        (CRASHED, 1, None),
        (FAULT, 1, 2),
        (FAULT, 2, None),
        (INTERRUPTED, 1, 2),
        (INTERRUPTED, 2, 3),
        (INTERRUPTED, 3, None),
    ],
)
def test_a_record_is_due_again_alike_in_a_running_and_in_a_resumed_study(ledger, kind, attempt, again):
    record = ended(job(4, attempt, origin=Origin.USER, point={"n": 4}), kind)
    ledger.begin(job(4, attempt))
    ledger.record(record)
    due = Retries(ledger, 7).after(record)
    assert due == (None if again is None else job(4, again, origin=Origin.USER, point={"n": 4}))
    assert Retries(ledger, 7).owed() == ([] if due is None else [due])


def test_an_attempt_in_flight_is_due_again_and_not_the_record_that_it_replaces(ledger):
    ledger.record(ended(job(1), FAULT))
    for one in (job(2), job(1, 2)):
        ledger.begin(one)
        ledger.launch(one)
    assert Retries(ledger, 7).owed() == [job(1, 3), job(2, 2)]


def test_a_trial_that_outlived_no_driver_is_taken_for_the_cause(ledger):
    ledger.begin(job(2, MAX_ATTEMPTS))
    ledger.launch(job(2, MAX_ATTEMPTS))
    assert Retries(ledger, 7).owed() == [] and ledger.in_flight == ()
    outcome = ledger.records[2].outcome
    assert outcome.kind is FAULT and "died 3 times while this trial ran" in outcome.evidence[0]
    assert Retries(ledger, 7).owed() == [], "nor is it due at the next start"


def test_a_trial_is_not_taken_for_the_cause_of_ends_that_somebody_asked_for(tmp_path):
    """Ctrl-C during the same long start, time and again, then a driver that dies: the trial had no part in any but the last."""
    for stops in range(5):
        with Ledger(tmp_path / "study", "name: s", "digest") as ledger:
            (due,) = Retries(ledger, 7).owed() if stops else [job(2)]
            assert due == job(2, stops + 1)
            ledger.begin(due)
            ledger.launch(due)
            Retries(ledger, 7).stopped()
    for deaths in range(MAX_ATTEMPTS):
        with Ledger(tmp_path / "study", "name: s", "digest") as ledger:
            (due,) = Retries(ledger, 7).owed()
            assert due == job(2, 6 + deaths)
            ledger.begin(due)
            ledger.launch(due)
    with Ledger(tmp_path / "study", "name: s", "digest") as ledger:
        assert Retries(ledger, 7).owed() == []
        assert "died 3 times" in ledger.records[2].outcome.evidence[0]


@pytest.mark.parametrize("kind", [FAULT, INTERRUPTED])
def test_a_stop_takes_no_retry_from_what_ends_by_itself(ledger, kind):
    ledger.begin(job(1))
    ledger.launch(job(1))
    Retries(ledger, 7).stopped()
    assert Retries(ledger, 7).after(ended(job(1, 2), kind)) == job(1, 3)


def test_a_trial_that_only_waited_when_the_study_was_stopped_has_lost_nothing(ledger):
    ledger.begin(job(1))
    Retries(ledger, 7).stopped()
    assert not ledger.notes
    assert Retries(ledger, 7).owed() == [job(1)]


def test_a_trial_that_only_waited_is_due_as_it_was_however_many_drivers_died_meanwhile(tmp_path):
    """It began to run under none of them, so it can have been the cause of no death."""
    ran, waited, retried = job(0), job(1), job(2, 2)
    for deaths in range(1, MAX_ATTEMPTS + 2):
        with Ledger(tmp_path / "study", "name: s", "digest") as ledger:
            if deaths == 1:
                ledger.record(ended(job(2), FAULT))
                due = [ran, waited, retried]
            else:
                due = Retries(ledger, 7).owed()
                assert due[-2:] == [waited, retried]
                assert len(due) == (3 if deaths <= MAX_ATTEMPTS else 2), "the one that ran each time is taken for the cause"
            for one in due:
                ledger.begin(one)
            if due[0].number == 0:
                ledger.launch(due[0])
    with Ledger(tmp_path / "study", "name: s", "digest") as ledger:
        assert ledger.records[0].outcome.kind is FAULT and 1 not in ledger.records
        ledger.launch(waited)
        assert Retries(ledger, 7).owed() == [job(1, 2), retried]


def test_a_ledger_that_does_not_say_what_ran_counts_all_that_it_began(ledger):
    """As those did that were written before launches were noted."""
    ledger._append("begin", {"job": job(3).model_dump(mode="json")})
    assert Retries(ledger, 7).owed() == [job(3, 2)]


def test_what_a_failing_machine_cost_is_due_once_more_however_often_it_was_tried(ledger):
    lost = [ended(job(1, 2), FAULT), ended(job(2, 5), FAULT)]
    for record in lost:
        ledger.record(record)
    found = Retries(ledger, 7)
    assert found.owed() == []
    found.give_up(lost)
    assert found.owed() == [job(1, 3), job(2, 6)]
    ledger.record(ended(job(1, 3), FAULT))
    assert found.owed() == [job(2, 6)]


def test_a_finalist_meets_the_arrivals_of_its_round_again(ledger):
    final = job(9, origin=Origin.FINALIST).model_copy(update={"seed": 11})
    ledger.note("finalists", {"searched": 9, "jobs": [final.model_dump(mode="json")]})
    ledger.begin(final)
    assert [one.seed for one in Retries(ledger, 7).owed()] == [11]
