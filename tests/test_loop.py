"""The loop: a machine that fails every trial stops a study, which goes on once it is mended."""

from __future__ import annotations

import pytest

from autotune import plan as plans
from autotune import run
from autotune.errors import MachineUnusable
from autotune.executors.inline import InlineExecutor
from autotune.ledger import read
from autotune.live import Silent
from autotune.preview import preview
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
    assert reporter.told == [(0, 10, 4, 1), (10, 0, 4, 1)], "8 of the budget, and the default again after 3 and 6 of them"
    assert reporter.came == 14
    again = Expecting()
    run.run(plan, reporter=again)
    assert again.told == [(14, 0, 4, 1)] and again.came == 0


def test_with_nothing_left_to_run_on_the_study_stops_and_does_not_count_as_over(plan, monkeypatch):
    monkeypatch.setattr(InlineExecutor, "capacity", property(lambda self: 0))
    with pytest.raises(MachineUnusable, match="Nothing is left"):
        run.run(plan, reporter=Silent())
