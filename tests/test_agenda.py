"""What a study runs next: attempts keep the traffic of the first, and what was spent counts whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune import finalists, policy
from autotune import plan as plans
from autotune.agenda import Agenda
from autotune.errors import AutotuneError
from autotune.ledger import Ledger
from autotune.standings import CLIMB_SHARE
from autotune.trial import (
    Configuration,
    Failed,
    FailureKind,
    Measured,
    Measurement,
    Origin,
    Phase,
    Row,
    TrialJob,
    TrialRecord,
)

STUDY = """\
name: replay
engine: {kind: recorded}
workload: {kind: recorded, traffic: chat}
search_space: {include: recorded}
objectives: [{maximize: output_tokens_per_s}]
search: {seed: 7}
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return plans.confirm(plans.read(path, tmp_path / "store"))


@pytest.fixture
def ledger(plan):
    with Ledger(plan.folder, STUDY, plan.study.identity) as opened:
        yield opened


def agenda(plan, ledger) -> Agenda:
    return Agenda(plan, ledger, policy.driver(plan, ledger, True, print), print)


def failed(job: TrialJob, kind: FailureKind, **more: object) -> TrialRecord:
    return job.ended(Failed(kind=kind, phase=Phase.MEASURE)).model_copy(update=more)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_finalist_that_is_tried_again_meets_the_arrivals_of_its_round(plan, ledger, resumed):
    job = TrialJob(number=12, configuration=Configuration(engine="recorded"), origin=Origin.FINALIST, seed=9)
    ledger.note("finalists", {"searched": 12, "jobs": [job.model_dump(mode="json")]})
    ledger.begin(job)
    if resumed:
        ledger.record(failed(job, FailureKind.INTERRUPTED))
        again = agenda(plan, ledger).waiting
    else:
        found = agenda(plan, ledger)
        found.waiting.clear()
        found.finished(failed(job, FailureKind.MACHINE_FAULT))
        again = found.waiting
    assert [(one.number, one.attempt, one.seed) for one in again] == [(12, 2, 9)]


def test_only_the_rounds_of_the_search_as_it_stands_are_taken_up(plan, ledger):
    """A search that goes on after its rounds were measured has other finalists; its older rounds stay in the ledger."""
    for searched, number in ((0, 12), (30, 40)):
        job = TrialJob(number=number, configuration=Configuration(engine="recorded"), origin=Origin.FINALIST)
        ledger.note(finalists.NOTE, finalists.Rounds(searched=searched, jobs=(job,)).model_dump(mode="json"))
    assert [job.number for job in finalists.planned(ledger.notes)[0]] == [40]
    assert finalists.planned(ledger.notes, 20) == ([], 0)
    found = agenda(plan, ledger)
    found.plan_finals()
    assert found.finals[0].number == 12 and 40 not in {job.number for job in found.finals}


def test_a_trial_of_the_search_is_tried_again_with_the_studys_seed(plan, ledger):
    job = TrialJob(number=3, configuration=Configuration(engine="recorded", values={"max_num_seqs": 8}), seed=7)
    found = agenda(plan, ledger)
    found.finished(failed(job, FailureKind.MACHINE_FAULT))
    assert [one.seed for one in found.waiting] == [7]


def test_the_address_of_a_trial_holds_what_the_engines_section_says(plan, tmp_path, ledger):
    path = tmp_path / "noisy.yaml"
    path.write_text(STUDY.replace("{kind: recorded}\n", "{kind: recorded, noise: 0.1}\n", 1))
    noisy = plans.confirm(plans.read(path, tmp_path / "other"))
    configuration = Configuration(engine="recorded")
    assert agenda(plan, ledger).key(configuration) != agenda(noisy, ledger).key(configuration)


def test_an_attempt_that_a_later_one_replaced_was_spent_all_the_same(plan, ledger):
    job = TrialJob(number=3, configuration=Configuration(engine="recorded", values={"max_num_seqs": 8}), seed=7)
    found = agenda(plan, ledger)
    found.finished(failed(job, FailureKind.MACHINE_FAULT, seconds={"start": 60.0}))
    again = job.model_copy(update={"attempt": 2})
    found.finished(failed(again, FailureKind.CRASHED, seconds={"start": 60.0, "start.imports": 50.0}, gpus=(0, 1)))
    assert found.spent_minutes() == 3.0
    assert ledger.records[3].gpu_minutes == 2.0


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_counts_once_whatever_became_of_its_attempts_and_a_default_again_not_at_all(plan, ledger, resumed):
    origins = {0: Origin.DEFAULT, 1: Origin.SEARCH, 2: Origin.SEARCH, 3: Origin.BASELINE}
    jobs = [TrialJob(number=number, configuration=Configuration(engine="recorded"), origin=of) for number, of in origins.items()]
    found = agenda(plan, ledger)
    for job in jobs:
        ledger.begin(job)
        found.finished(failed(job, FailureKind.MACHINE_FAULT))
    ledger.begin(jobs[1].model_copy(update={"attempt": 2}))
    found.finished(failed(jobs[1].model_copy(update={"attempt": 2}), FailureKind.CRASHED))
    ledger.begin(jobs[2].model_copy(update={"attempt": 2}))
    ledger.begin(TrialJob(number=4, configuration=Configuration(engine="recorded")))
    found = agenda(plan, ledger) if resumed else found
    assert found._searched() == 4


def test_a_study_does_not_go_on_with_another_version_of_its_engine(plan, ledger):
    begun = {kind: identity.model_dump(mode="json") for kind, identity in plan.identities.items()}
    ledger.note("engines", {"recorded": {**begun["recorded"], "version": "0.1"}})
    policy.same_engines(plan, ledger)
    ledger.record(failed(TrialJob(number=0, configuration=Configuration(engine="recorded")), FailureKind.CRASHED))
    with pytest.raises(AutotuneError, match=r"begun with recorded 0\.1"):
        policy.same_engines(plan, ledger)
    ledger.note("engines", begun)
    policy.same_engines(plan, ledger)


def test_a_study_does_not_go_on_where_the_shell_tells_its_engine_something_else(plan, ledger):
    begun = {kind: identity.model_dump(mode="json") for kind, identity in plan.identities.items()}
    ledger.record(failed(TrialJob(number=0, configuration=Configuration(engine="recorded")), FailureKind.CRASHED))
    ledger.note("engines", {"recorded": {**begun["recorded"], "variables": {"VLLM_USE_DEEP_GEMM": "0"}}})
    with pytest.raises(AutotuneError, match=r"begun with VLLM_USE_DEEP_GEMM=0 in its shell"):
        policy.same_engines(plan, ledger)
    # What an earlier version has kept says nothing of the shell.
    ledger.note("engines", {"recorded": {name: value for name, value in begun["recorded"].items() if name != "variables"}})
    policy.same_engines(plan, ledger)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_climb_begins_below_what_earlier_ones_sustained(plan, ledger, resumed):
    def climbed(number: int, sequences: int, rate: float | None) -> TrialRecord:
        row = Row(level={"concurrency": 512}, metrics={"output_tokens_per_s": 100.0 * number})
        totals = {} if rate is None else {"slo_request_rate": rate}
        configuration = Configuration(engine="recorded", values={"max_num_seqs": sequences})
        return TrialJob(number=number, configuration=configuration).ended(
            Measured(measurement=Measurement(rows=(row,), totals=totals))
        )

    found = agenda(plan, ledger)
    assert found.next().climb_from is None, "nothing is known before the default was measured"
    for record in (climbed(1, 64, 10.0), climbed(2, 128, 40.0), climbed(3, 256, 60.0), climbed(4, 512, None)):
        found.finished(record)
    found = agenda(plan, ledger) if resumed else found
    assert found.next().climb_from == pytest.approx(CLIMB_SHARE * 40)
    again = TrialJob(number=9, configuration=Configuration(engine="recorded", values={"max_num_seqs": 256}))
    found.waiting.append(again)
    begun = found.next()
    while begun.number != 9:
        begun = found.next()
    assert begun.climb_from == pytest.approx(CLIMB_SHARE * 60), "what it sustained itself says more"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_that_is_tried_again_is_not_proposed_beside_itself(tmp_path, resumed):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("{seed: 7}", "{seed: 7, sampler: grid}"))
    plan = plans.confirm(plans.read(path, tmp_path / "store"))
    with Ledger(plan.folder, STUDY, plan.study.identity) as ledger:
        found = agenda(plan, ledger)
        begun = [found.next() for _ in range(3)]
        found.finished(failed(begun[1], FailureKind.MACHINE_FAULT))
        if resumed:
            found = agenda(plan, ledger)
        again = [found.next() for _ in range(4)]
        assert begun[1].configuration in [job.configuration for job in again]
        assert len({job.configuration.digest for job in again}) == 4


@pytest.mark.parametrize("metric", ["output_tokens_per_s", "requests_per_s"])
def test_an_equal_trial_is_taken_over_only_where_it_has_the_numbers_of_this_study(plan, ledger, metric):
    """Another study looks at other numbers: a climb that left a rate for its sake has none of that rate."""
    plan = replace(plan, study=plan.study.model_copy(update={"reuse": True}))
    found = agenda(plan, ledger)
    job = TrialJob(number=4, configuration=Configuration(engine="recorded"), origin=Origin.SEARCH)
    measurement = Measurement(rows=(Row(level={"concurrency": 8}, metrics={metric: 1.0}),))
    with Ledger(plan.store / "earlier", STUDY, "earlier") as earlier:
        earlier.begin(job)
        earlier.record(job.ended(Measured(measurement=measurement)), found.key(job.configuration))
    found.waiting.appendleft(job)
    known = found.next()
    if metric == "output_tokens_per_s":
        assert isinstance(known, TrialRecord) and known.reused_from == "earlier/4"
    else:
        assert isinstance(known, TrialJob)
