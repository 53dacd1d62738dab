"""The loop: a machine that fails every trial stops a study, which goes on once it is mended."""

from __future__ import annotations

import pytest

from autotune import plan as plans
from autotune import run
from autotune.errors import MachineUnusable
from autotune.executors.inline import InlineExecutor
from autotune.ledger import read
from autotune.live import Silent
from autotune.trial import Failed
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


def test_with_nothing_left_to_run_on_the_study_stops_and_does_not_count_as_over(plan, monkeypatch):
    monkeypatch.setattr(InlineExecutor, "capacity", property(lambda self: 0))
    with pytest.raises(MachineUnusable, match="Nothing is left"):
        run.run(plan, reporter=Silent())
