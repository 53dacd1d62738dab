"""What the sampler is told of a trial that was ended early: where it stood, below feasible trials and above crashes."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState
from recorded_study import CONSTRAINTS, OBJECTIVES, driver, space

from autotune.score import Reached, Score, reached
from autotune.search import grid
from autotune.search.history import FEASIBLE, SHORT, History
from autotune.study import Search
from autotune.trial import Failed, FailureKind, Measurement, Phase, Row, TrialRecord

SLO = CONSTRAINTS[0].name


@pytest.fixture
def history():
    found = History(space(), [objective.direction for objective in OBJECTIVES], [SLO])
    points = list(zip(range(4), grid.points(space()), strict=False))
    told = [
        Score(values=(5000.0, 60.0), violations=(-0.5,)),
        Reached(values=(900.0, 70.0), violations=(None,)),
        Reached(values=(None, 30.0), violations=(8.0,)),
        None,
    ]
    for (number, point), score in zip(points, told, strict=True):
        found.tell(found.entry(number, point, score))
    return found


def test_a_trial_with_every_objective_known_is_told_where_it_stood(history):
    stood = history.trials(impute=False)[1]
    assert stood.state is TrialState.COMPLETE and stood.values == [900.0, 70.0]
    assert stood.constraints == {FEASIBLE: SHORT, SLO: 0.0}


def test_it_never_becomes_the_winner():
    found = History(space(), [objective.direction for objective in OBJECTIVES], [SLO])
    point = next(grid.points(space()))
    found.tell(found.entry(0, point, Reached(values=(9e9, 1.0), violations=(-0.9,))))
    assert found.winner() is None


def test_it_ranks_between_the_measured_and_the_crashed_and_lower_when_it_broke_a_constraint(history):
    ranks = [sum(max(0.0, one) for one in trial.constraints.values()) for trial in history.trials(impute=False)]
    measured, stood, broke, crashed = ranks
    assert measured == 0 < stood < broke < crashed


def test_samplers_that_need_values_get_no_invented_ones_for_it(history):
    for trial in history.trials(impute=True):
        assert trial.state is TrialState.COMPLETE
    assert history.trials(impute=True)[1].values == [900.0, 70.0]


def test_only_what_was_measured_is_reached():
    row = Row(level={"concurrency": 512}, metrics={"output_tokens_per_s": 800.0})
    found = reached(Measurement(rows=(row,)), OBJECTIVES, CONSTRAINTS)
    assert found == Reached(values=(800.0, None), violations=(None,))
    assert found.as_score is None


def test_a_search_goes_on_from_ended_trials_and_is_restored_by_them():
    def told(of):
        for _ in range(14):
            proposal = of.ask()
            failed = Failed(kind=FailureKind.ENDED_EARLY, phase=Phase.MEASURE)
            fields = proposal.model_dump(include={"number", "configuration", "origin", "point"})
            values = (float(proposal.number), None) if proposal.number % 2 else (1.0, 2.0)
            yield TrialRecord(**fields, outcome=failed), Reached(values=values, violations=(0.5,)), proposal

    first = driver(Search(startup_trials=4))
    kept = []
    for record, found, proposal in told(first):
        first.tell(record, found)
        kept.append((proposal, record, found))
    second = driver(Search(startup_trials=4))
    for proposal, record, found in kept:
        for cut in proposal.cuts:
            second.cut(cut)
        second.tell(record, found)
    assert len({record.configuration.digest for _, record, _ in kept}) == len(kept)
    assert first.ask() == second.ask()
