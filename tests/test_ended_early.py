"""Trials that are ended early, from the study's file to its ledger."""

from __future__ import annotations

import pytest

from autotune import plan as plans
from autotune import policy, preview, run
from autotune.agenda import Agenda
from autotune.analysis import Analysis
from autotune.engines.base import Context
from autotune.errors import InvalidInput
from autotune.executors.base import Site
from autotune.ledger import Ledger, read
from autotune.live import Silent
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Row, TrialJob, TrialRecord

STUDY = """\
name: replay
engine: {kind: recorded}
workload: {kind: recorded, traffic: chat}
search_space: {include: recorded}
objectives: [{maximize: output_tokens_per_s @ concurrency=512}, {minimize: peak_gpu_memory_gib}]
constraints: ["ttft_ms.p99 <= 150 @ request_rate=30"]
budget: {trials: 24}
search: {seed: 3, EXTRA}
finalists: {count: 1, repeats: 2}
tracking: {enabled: false}
"""


def planned(tmp_path, extra="startup_trials: 10", name="store"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(STUDY.replace("EXTRA", extra))
    return plans.confirm(plans.read(path, tmp_path / name))


def short(record):
    return isinstance(record.outcome, Failed) and record.outcome.kind is FailureKind.ENDED_EARLY


@pytest.fixture
def agenda(tmp_path):
    plan = planned(tmp_path)
    with Ledger(plan.folder, STUDY, plan.study.identity) as ledger:
        found = Agenda(plan, ledger, policy.driver(plan, ledger, True, print), print)
        rows = (
            Row(level={"concurrency": 512}, metrics={"output_tokens_per_s": 5000.0}),
            Row(level={"request_rate": 30}, metrics={"ttft_ms.p99": 60.0}),
        )
        job = TrialJob(number=0, configuration=Configuration(engine="recorded"), origin=Origin.DEFAULT)
        measured = Measured(measurement=Measurement(rows=rows, totals={"peak_gpu_memory_gib": 60.0}))
        ledger.begin(job)
        found.finished(job.ended(measured))
        yield found


@pytest.mark.parametrize("origin", Origin)
def test_only_what_the_search_chose_has_a_bar(agenda, origin):
    job = TrialJob(number=1, configuration=Configuration(engine="recorded"), origin=origin)
    site = Site(engines=agenda.plan.engines, workload=agenda.plan.workload, store=agenda.plan.store, study="replay", bar=agenda.bar)
    context = site.context(job)
    asked_for = origin in (Origin.DEFAULT, Origin.BASELINE, Origin.FINALIST, Origin.USER)
    assert (context.bar is None) == asked_for
    assert Context.model_validate_json(context.model_dump_json()) == context


def test_switched_off_nothing_has_a_bar(tmp_path):
    plan = planned(tmp_path, "early_exit: false")
    with Ledger(plan.folder, STUDY, plan.study.identity) as ledger:
        found = Agenda(plan, ledger, policy.driver(plan, ledger, True, print), print)
        assert found.bar(TrialJob(number=1, configuration=Configuration(engine="recorded"))) is None
    assert preview.preview(plan).ends_early == ""
    assert plan.workload.levels()[0] == {"request_rate": 10}


def test_a_probe_that_may_end_nothing_is_a_mistake(tmp_path):
    with pytest.raises(InvalidInput, match="early_exit is false"):
        planned(tmp_path, "early_exit: false, probe_s: 5")


def test_the_plan_says_so_and_runs_what_the_goals_name_first(tmp_path):
    plan = planned(tmp_path, "probe_s: 5")
    said = preview.preview(plan).ends_early
    assert "a first pass of 5 s" in said and "95%" in said
    assert plan.workload.levels()[:2] == ({"request_rate": 30}, {"concurrency": 512})


@pytest.mark.parametrize("extra", ["startup_trials: 10", "startup_trials: 10, probe_s: 5"])
def test_a_study_ends_hopeless_trials_keeps_what_they_showed_and_never_scores_them(tmp_path, extra):
    plan = planned(tmp_path, extra)
    finished = run.run(plan, reporter=Silent())
    ended = [record for record in finished.results.records if short(record)]
    assert ended
    measured = [record for record in finished.results.records if record.measurement is not None]
    for record in ended:
        assert record.origin is Origin.SEARCH
        assert record.outcome.evidence[0].startswith("Ended early: ")
        assert 1 <= len(record.outcome.partial.rows) < 4
        assert finished.results.score(record) is None
        assert "start_s" in record.outcome.partial.totals
        assert sum(record.seconds.values()) < max(sum(one.seconds.values()) for one in measured)
    assert all(len(record.measurement.rows) == 4 for record in measured)
    assert {one.trial for one in finished.results.candidates}.isdisjoint({record.number for record in ended})


def test_the_ledger_restores_a_search_with_ended_trials(tmp_path):
    plan = planned(tmp_path)
    run.run(plan, reporter=Silent())
    kept = read(plan.folder)
    assert any(short(record) for record in kept.records.values())
    with Ledger(plan.folder, STUDY.replace("EXTRA", "startup_trials: 10"), plan.study.identity) as ledger:
        first, second = (Agenda(plan, ledger, policy.driver(plan, ledger, True, print), print) for _ in range(2))
    assert first.standings.bar() == second.standings.bar()
    assert first.driver.ask() == second.driver.ask()


def test_an_ended_run_says_nothing_against_a_configuration_that_was_measured(tmp_path):
    rows = (
        Row(level={"concurrency": 512}, metrics={"output_tokens_per_s": 5000.0}),
        Row(level={"request_rate": 30}, metrics={"ttft_ms.p99": 60.0}),
    )
    outcomes = (
        Measured(measurement=Measurement(rows=rows, totals={"peak_gpu_memory_gib": 60.0})),
        Failed(kind=FailureKind.ENDED_EARLY, phase="measure"),
    )
    configuration = Configuration(engine="recorded", values={"max_num_seqs": 64})
    records = [
        TrialRecord(number=number, configuration=configuration, origin=Origin.SEARCH, outcome=outcome)
        for number, outcome in enumerate(outcomes)
    ]
    assert [one.feasible for one in Analysis(planned(tmp_path).study, tuple(records)).candidates] == [True]


def test_an_ended_trial_still_says_what_memory_its_engine_had(tmp_path):
    plan = planned(tmp_path)
    rungs = policy.ladder(plan)
    before = rungs.memory["recorded"]
    partial = Measurement(rows=(), totals={"kv_cache_tokens": 100000.0})
    ended = Failed(kind=FailureKind.ENDED_EARLY, phase="measure", partial=partial)
    configuration = Configuration(engine="recorded", values={"max_num_seqs": 128})
    rungs.learn(TrialRecord(number=1, configuration=configuration, origin=Origin.SEARCH, outcome=ended))
    assert rungs.memory["recorded"] != before
