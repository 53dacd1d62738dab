"""The loop: a machine that fails every trial stops a study, which goes on once it is mended."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest

from autotune import executors, finalists, run
from autotune import plan as plans
from autotune.errors import Interrupted, MachineUnusable
from autotune.executors.inline import InlineExecutor
from autotune.ledger import Ledger, read
from autotune.live import Silent
from autotune.loop import Loop
from autotune.preview import preview
from autotune.trial import Configuration, Failed, FailureKind, Origin, Phase, TrialJob
from autotune.workloads.recorded import RecordedWorkload

STUDY = """\
name: replay
engine: {kind: recorded}
workload: {kind: recorded, traffic: chat}
search_space: {include: recorded}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 8}
search: {early_exit: false}
finalists: {count: 0}
tracking: {enabled: false}
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return plans.confirm(plans.read(path, tmp_path / "store"))


def test_a_machine_that_fails_every_trial_stops_the_study_and_a_mended_one_continues_it(plan, monkeypatch):
    def broken(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(MachineUnusable, match=r"The last 5 attempts .* No space left"):
        patched.setattr(RecordedWorkload, "run", broken)
        run.run(plan, reporter=Silent())
    kept = read(plan.folder)
    assert all(isinstance(record.outcome, Failed) for record in kept.records.values())
    finished = run.run(plan, reporter=Silent())
    assert "budget of 8 trials" in finished.reason
    assert len(finished.results.records) == 8
    assert finished.results.default_candidate is not None, "the default is measured, whatever the machine did to it first"
    for number in kept.records:
        assert finished.results.record(number).configuration == kept.records[number].configuration


class Told:
    """A tracker that keeps what it was told."""

    def __init__(self):
        self.ends = []

    def study_started(self):
        self.ends.append("RUNNING")

    def finished(self, status):
        self.ends.append(status)

    def flush(self, timeout_s):
        return True

    def trial(self, record):
        return

    def close(self):
        return


def test_a_study_that_a_failing_machine_stopped_is_not_shown_as_running(plan, monkeypatch):
    told = Told()
    monkeypatch.setattr(run.tracking, "Tracker", lambda store, study: told)
    monkeypatch.setattr(RecordedWorkload, "run", lambda *arguments: 1 / 0)
    study = plan.study.model_copy(update={"tracking": plan.study.tracking.model_copy(update={"enabled": True})})
    with pytest.raises(MachineUnusable):
        run.run(dataclasses.replace(plan, study=study), reporter=Silent())
    assert told.ends == ["RUNNING", "KILLED"]


class Expecting(Silent):
    """Keeps what it was told to expect, and counts what came."""

    def __init__(self):
        super().__init__()
        self.told, self.came = [], 0

    def expect(self, *numbers):
        self.told.append(numbers)

    def finished(self, record, score):
        self.came += 1


def test_the_rounds_of_the_finalists_are_expected_from_the_start(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("{count: 0}", "{count: 1, repeats: 2}").replace("early_exit: false", "baseline_every: 3"))
    plan = plans.confirm(plans.read(path, tmp_path / "store"))
    assert (preview(plan).expected.trials, preview(plan).expected.finals) == (14, 4)
    reporter = Expecting()
    run.run(plan, reporter=reporter)
    assert reporter.told[0] == (0, 10, 4, 1), "8 of the budget, and the default again after 3 and 6 of them"
    assert (10, 0, 4, 1) in reporter.told and reporter.told[-1] == (14, 0, 0, 1)
    assert reporter.came == 14
    again = Expecting()
    run.run(plan, reporter=again)
    assert again.told == [(14, 0, 4, 1)] and again.came == 0


def test_no_more_trials_are_expected_than_the_gpu_minutes_buy(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("{trials: 8}", "{trials: 200, gpu_minutes: 8}"))
    plan = plans.confirm(plans.read(path, tmp_path / "store"))
    reporter = Expecting()
    run.run(plan, reporter=reporter)
    spent = read(plan.folder).gpu_minutes
    assert reporter.told[0][1] == plan.study.search_trials, "what a trial costs is not known yet"
    assert reporter.came < 20 and all(search < 20 for _, search, _, _ in reporter.told[2:])
    assert spent >= 8 and reporter.told[-1][1] == 0


def test_a_check_tells_how_many_trials_the_gpu_minutes_buy(tmp_path):
    """Known once trials of the engine were measured in the store: a start cannot be guessed."""

    def expected(budget):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(STUDY.replace("name: replay", f"name: replay-{path.stem}").replace("{trials: 8}", budget))
        plan = plans.confirm(plans.read(path, tmp_path / "store"))
        return plan, preview(plan).expected

    plan, first = expected("{trials: 3}")
    assert first.seconds_per_trial is None and first.affordable is None
    run.run(plan, reporter=Silent())
    _, later = expected("{trials: 200, gpu_minutes: 30}")
    assert later.affordable == int(1800 / later.seconds_per_trial) < 200
    assert expected("{trials: 2, gpu_minutes: 30}")[1].affordable is None, "the trials end it first"


def test_more_repeats_asked_for_later_add_rounds_of_the_same_entrants_with_arrivals_of_their_own(tmp_path):
    path = tmp_path / "study.yaml"
    text = STUDY.replace("{count: 0}", "{count: 1, repeats: 2}")
    for repeats in (2, 4, 3):
        path.write_text(text.replace("repeats: 2", f"repeats: {repeats}"))
        found = run.run(plans.confirm(plans.read(path, tmp_path / "store")), reporter=Silent()).results
        again = [one for one in found.records if one.origin in (Origin.BASELINE, Origin.FINALIST)]
        rounds = max(repeats, 4) if repeats != 2 else 2
        assert len(again) == 2 * rounds and len({one.number for one in found.records}) == len(found.records)
        jobs, looks = finalists.planned(found.notes)
        assert [job.number for job in jobs] == [one.number for one in again]
        assert sorted(job.seed for job in jobs) == sorted([*range(1, rounds + 1), *range(1, rounds + 1)])
        assert looks == (1 if repeats == 2 else 2), "a lower number asks for nothing more"
        (once,), (again,) = (finalists.verdicts(found, jobs, count) for count in (1, 2))
        assert again.p == min(1.0, 2 * once.p)


def test_with_nothing_left_to_run_on_the_study_stops_and_does_not_count_as_over(plan, monkeypatch):
    monkeypatch.setattr(InlineExecutor, "capacity", property(lambda self: 0))
    with pytest.raises(MachineUnusable, match="Nothing is left"):
        run.run(plan, reporter=Silent())


class Gone(InlineExecutor):
    """Nothing that it ran on is there any more, which is what each of its trials is answered with."""

    def collect(self, timeout_s):
        record = self._waiting.popleft().ended(
            Failed(kind=FailureKind.MACHINE_FAULT, phase=Phase.CHECK, evidence=("No node.", "Why."))
        )
        Gone.capacity = 0
        return record


def test_the_end_of_a_study_with_nothing_left_says_what_became_of_it(plan, monkeypatch):
    monkeypatch.setattr(Gone, "capacity", 1)
    monkeypatch.setattr("autotune.executors.make", lambda kind, site: Gone(site))
    with pytest.raises(
        MachineUnusable, match=r"Nothing is left to run trials on\. The last trial ended with: No node\. Why\. Mend it"
    ):
        run.run(plan, reporter=Silent())


class Stopped:
    """Ctrl-C has been pressed once."""

    stopping, now = True, False


class Shrinking:
    """Runs one trial and has another waiting; what it runs on may go."""

    capacity = 2

    def __init__(self, trials):
        self.begun, self.waiting = [trials[0]], list(trials[1:])

    def running(self):
        return (*self.begun, *self.waiting)

    def withdraw(self):
        self.waiting.clear()

    def collect(self, timeout_s):
        return self.begun.pop() if self.begun else None

    def notices(self):
        return []


class Kept:
    """An agenda that only counts."""

    def __init__(self):
        self.records = []

    def finished(self, record):
        self.records.append(record)

    def progress(self):
        return len(self.records), 0, 0


def attempt(number):
    job = TrialJob(number=number, configuration=Configuration(engine="recorded"))
    return job.ended(Failed(kind=FailureKind.MACHINE_FAULT, phase=Phase.MEASURE, evidence=("gone",)))


def test_after_a_first_interrupt_only_what_has_begun_is_awaited():
    agenda = Kept()
    Loop(agenda, Shrinking([attempt(0), attempt(1)]), Stopped(), Silent(), None).work(lambda: None)
    assert [record.number for record in agenda.records] == [0]


def test_trials_that_end_together_with_their_machine_do_not_end_the_study():
    """Eight ran on a node that dies; the limit is not that of the few places which are left."""
    places = Shrinking([attempt(0)])
    loop = Loop(Kept(), places, Stopped(), Silent(), None)
    places.capacity = 9
    loop.give_up()
    places.capacity = 1
    for number in range(8):
        loop.keep(attempt(number))
    loop.give_up()


class Impatient(InlineExecutor):
    """Its user presses Ctrl-C twice while a trial runs, which is ended then."""

    def collect(self, timeout_s):
        job = self._waiting[0]
        self.site.launched(job)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return


def test_a_trial_that_was_stopped_time_and_again_is_still_measured(plan, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(executors, "make", lambda kind, site: Impatient(site))
        for _ in range(4):
            with pytest.raises(Interrupted):
                run.run(plan, reporter=Silent())
    finished = run.run(plan, reporter=Silent())
    assert finished.results.record(0).measurement is not None
    assert finished.results.record(0).attempt == 5


class Saying(Silent):
    """Keeps what it was told to say."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def test_a_trial_that_is_given_up_is_told(plan):
    first = TrialJob(number=0, configuration=Configuration(engine="recorded"), origin=Origin.DEFAULT, attempt=3)
    with Ledger(plan.folder, plan.text.text, plan.study.identity) as ledger:
        ledger.begin(first)
        ledger.launch(first)
    reporter = Saying()
    run.run(plan, reporter=reporter)
    assert [one for one in reporter.said if one.startswith("Trial 0 is not run again: The driver died 3 times")]
