"""A trial is ended only when it cannot reach the front, and noise ends a good one no more often than is said."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.bar import CONFIDENCE, LEAST_GAIN, Bar, SoFar, Spread, ceiling, decisive_first
from autotune.score import Constraint, Objective, Score, Selector
from autotune.standings import Standings
from autotune.trial import Configuration, Measured, Measurement, Origin, Row, TrialRecord

MOST = "output_tokens_per_s @ concurrency=512"
PEAK = "peak_gpu_memory_gib"
SLO = "ttft_ms.p99 <= 100 @ request_rate=30"
EXACT = Spread(deviation=0.05, freedom=1e6)


def goal(text, direction="maximize"):
    return Objective(selector=Selector.parse(text), direction=direction)


def bar(objectives=None, constraints=(), front=((1000.0, 20.0), (2000.0, 40.0)), nadir=(500.0, 60.0), spread=EXACT):
    objectives = objectives or (goal(MOST), goal(PEAK, "minimize"))
    bounds = tuple(Constraint.parse(text) for text in constraints)
    return Bar(
        objectives=objectives, constraints=bounds, front=front, nadir=nadir, spreads=(spread,) * (len(objectives) + len(bounds))
    )


def closed(tokens, **metrics):
    return Row(level={"concurrency": 512}, metrics={"output_tokens_per_s": tokens, **metrics})


def rate(requests, **metrics):
    return Row(level={"request_rate": requests}, metrics=metrics)


AHEAD = ({"request_rate": 30},)


def test_a_trial_below_the_front_is_ended_with_the_reason_and_the_risk():
    why = bar().hopeless(SoFar((closed(700.0),), AHEAD, {PEAK: 45.0}))
    assert why is not None and MOST in why and "0.2%" in why and "5%" in why


@pytest.mark.parametrize(
    ("tokens", "peak"),
    [
        pytest.param(2100.0, 45.0, id="above the front"),
        pytest.param(1900.0, 40.0, id="below it by less than the noise"),
        pytest.param(100.0, 15.0, id="slow, but with less memory than any"),
        pytest.param(5000.0, 100.0, id="worse than the nadir in one objective, better than all in another"),
    ],
)
def test_a_trial_that_may_reach_the_front_goes_on(tokens, peak):
    assert bar().hopeless(SoFar((closed(tokens),), AHEAD, {PEAK: peak})) is None


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(SoFar((rate(30, output_tokens_per_s=10.0),), ({"concurrency": 512},), {PEAK: 45.0}), id="its level is ahead"),
        pytest.param(SoFar((closed(1.0),), AHEAD, {}), id="no total yet"),
        pytest.param(SoFar((closed(1.0).model_copy(update={"invalid": "Cut."}),), AHEAD, {PEAK: 45.0}), id="an invalid row"),
        pytest.param(SoFar((closed(0.0),), AHEAD, {PEAK: 45.0}), id="a zero has no noise"),
        pytest.param(SoFar((), AHEAD, {PEAK: 45.0}), id="nothing done"),
    ],
)
def test_what_cannot_be_bounded_ends_nothing(seen):
    assert bar().hopeless(seen) is None


def test_nothing_is_ended_where_the_noise_cannot_be_told():
    assert bar(spread=None).hopeless(SoFar((closed(1.0),), AHEAD, {PEAK: 59.0})) is None


def test_a_total_asked_for_from_its_worse_end_is_no_bound():
    """The peak so far bounds the final one from below, which says nothing to a study that wants it high."""
    asked = bar(objectives=(goal(PEAK),), front=((50.0,),), nadir=(40.0,))
    assert asked.hopeless(SoFar((closed(1.0),), AHEAD, {PEAK: 10.0})) is None


def test_the_best_of_all_levels_is_bounded_by_what_arrives_at_an_open_one():
    judge = bar(objectives=(goal("output_tokens_per_s"),), front=((2000.0,),), nadir=(500.0,))
    slow = closed(700.0, requests_per_s=7.0)
    assert judge.hopeless(SoFar((slow,), ({"request_rate": 5},))) is not None
    assert judge.hopeless(SoFar((slow,), ({"request_rate": 50},))) is None
    assert judge.hopeless(SoFar((slow,), ({"concurrency": 16},))) is None
    assert judge.hopeless(SoFar((slow,), ({},))) is None


def test_the_worst_of_all_levels_needs_one_of_them():
    judge = bar(objectives=(goal("ttft_ms.p99", "minimize"),), front=((100.0,),), nadir=(900.0,))
    assert judge.hopeless(SoFar((rate(30, **{"ttft_ms.p99": 400.0}),), ({"concurrency": 512},))) is not None
    assert judge.hopeless(SoFar((rate(30, **{"ttft_ms.p99": 90.0}),), ({"concurrency": 512},))) is None


def test_a_ceiling_knows_requests_and_tokens_only():
    row = closed(800.0, requests_per_s=8.0)
    assert ceiling("goodput_per_s", {"request_rate": 3}, ()) == 3
    assert ceiling("output_tokens_per_s", {"request_rate": 3}, (row,)) == pytest.approx(300)
    assert ceiling("output_tokens_per_s", {"request_rate": 3}, ()) is None
    assert ceiling("tokens_per_s_per_user", {"request_rate": 3}, (row,)) is None
    assert ceiling("requests_per_s", {"concurrency": 3}, (row,)) is None


@pytest.mark.parametrize(("text", "broken", "kept"), [(SLO, 200.0, 115.0), ("ttft_ms.p99 >= 100 @ request_rate=30", 50.0, 90.0)])
def test_a_constraint_ends_a_trial_when_it_is_broken_beyond_noise(text, broken, kept):
    judge = bar(constraints=[text])
    ahead = ({"concurrency": 512},)
    why = judge.hopeless(SoFar((rate(30, **{"ttft_ms.p99": broken}),), ahead))
    assert why is not None and "broken beyond noise" in why
    assert judge.hopeless(SoFar((rate(30, **{"ttft_ms.p99": kept}),), ahead)) is None


def test_a_climb_is_ended_by_the_rate_that_broke():
    judge = bar(objectives=(goal("slo_request_rate"), goal(PEAK, "minimize")), front=((40.0, 30.0),), nadir=(10.0, 60.0))
    rows = (rate(16), rate(32).model_copy(update={"invalid": "Too slow."}))
    assert judge.hopeless(SoFar(rows, ({},), {PEAK: 45.0, "slo_request_rate": 16.0})) is not None
    assert judge.hopeless(SoFar(rows, ({},), {PEAK: 45.0, "slo_request_rate": 64.0})) is None
    assert judge.hopeless(SoFar(rows, ({},), {PEAK: 45.0})) is None


def test_a_short_pass_and_later_looks_ask_for_more():
    judge = bar(objectives=(goal(MOST),), front=((2000.0,),), nadir=(500.0,))
    rows = (closed(1600.0),)
    assert judge.hopeless(SoFar(rows, AHEAD)) is not None
    assert judge.hopeless(SoFar(rows, AHEAD, noise=2.0)) is None
    assert judge.hopeless(SoFar(rows, AHEAD, looks=20)) is None


LEVELS = ({"concurrency": 512}, {"request_rate": 30}, {"request_rate": 60})


@settings(max_examples=10, deadline=None)
@given(
    better=st.floats(1.0, 1.3),
    deviation=st.floats(0.01, 0.12),
    order=st.permutations(range(3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_noise_ends_a_trial_that_adds_to_the_front_no_more_often_than_is_said(better, deviation, order, seed):
    """At the limit of what counts and above it, whatever the noise and in whatever order the levels run."""
    spread = Spread(deviation=deviation, freedom=1e6)
    front, nadir = ((1000.0, 100.0),), (500.0, 300.0)
    judge = bar(
        objectives=(goal("output_tokens_per_s"), goal("ttft_ms.p99", "minimize")),
        constraints=["tpot_ms.p99 <= 50"],
        front=front,
        nadir=nadir,
        spread=spread,
    )
    # Along the first objective it adds the gain alone: the second is as good as the front's.
    tokens = 1000 * better + LEAST_GAIN * 1000
    assert judge._gain((tokens, 100.0)) >= LEAST_GAIN
    random, ended, runs = np.random.default_rng(seed), 0, 200
    for _ in range(runs):
        rows = {
            index: Row(
                level=LEVELS[index],
                metrics={
                    "output_tokens_per_s": (tokens if index == 0 else tokens / 2) * math.exp(deviation * random.normal()),
                    "ttft_ms.p99": (100.0 if index == 0 else 60.0) * math.exp(deviation * random.normal()),
                    "tpot_ms.p99": 50 * math.exp(deviation * random.normal()),
                    "requests_per_s": 10.0,
                },
            )
            for index in range(3)
        }
        looks = [
            SoFar(tuple(rows[index] for index in order[:count]), tuple(LEVELS[index] for index in order[count:]))
            for count in (1, 2, 3)
        ]
        ended += any(judge.hopeless(seen) is not None for seen in looks)
    allowed = (1 - CONFIDENCE) * runs
    assert ended <= allowed + 4 * math.sqrt(allowed)


@given(order=st.permutations(range(4)))
def test_the_levels_that_goals_name_run_first_however_they_are_given(order):
    levels = [({"request_rate": 10}, {"request_rate": 30}, {"request_rate": 60}, {"concurrency": 512})[index] for index in order]
    chosen = decisive_first(levels, (goal(MOST), goal(PEAK, "minimize")), (Constraint.parse(SLO),))
    assert sorted(chosen) == [0, 1, 2, 3]
    assert [levels[index] for index in chosen[:2]] == [{"request_rate": 30}, {"concurrency": 512}]


def test_a_level_without_a_ceiling_runs_before_rates_and_a_climb_where_it_is_the_goal():
    levels = ({"request_rate": 4}, {"concurrency": 16}, {})
    assert decisive_first(levels, (goal("output_tokens_per_s"),), ()) == (1, 0, 2)
    assert decisive_first(levels, (goal("slo_request_rate"),), ()) == (2, 0, 1)
    assert decisive_first(levels, (goal("ttft_ms.p99", "minimize"),), ()) == (0, 1, 2)


class Study:
    """Records of a study with two objectives and a constraint."""

    def __init__(self):
        self.standings = Standings((goal(MOST), goal(PEAK, "minimize")), (Constraint.parse(SLO),))
        self.numbers = itertools.count()

    def hear(self, tokens, peak, ttft=50.0, origin=Origin.SEARCH, seqs=None):
        measured = Measurement(rows=(closed(tokens), rate(30, **{"ttft_ms.p99": ttft})), totals={PEAK: peak})
        number = next(self.numbers)
        values = {} if seqs == 0 else {"max_num_seqs": seqs or number}
        record = TrialRecord(
            number=number,
            configuration=Configuration(engine="fake", values=values),
            origin=origin,
            outcome=Measured(measurement=measured),
        )
        self.standings.hear(record, Score(values=(tokens, peak), violations=(ttft / 100 - 1,)))
        return self


def test_the_bar_is_the_feasible_front_with_its_nadir():
    study = Study()
    assert study.standings.bar() is None
    study.hear(9000.0, 1.0, ttft=500.0)
    assert study.standings.bar() is None
    found = study.hear(1000.0, 20.0).hear(2000.0, 40.0).hear(700.0, 50.0).standings.bar()
    assert set(found.front) == {(1000.0, 20.0), (2000.0, 40.0)}
    assert found.nadir == (700.0, 50.0)
    assert Bar.model_validate_json(found.model_dump_json()) == found


def test_a_lucky_repeat_does_not_raise_the_bar_but_sharpens_the_noise():
    study = Study().hear(1000.0, 20.0, seqs=0, origin=Origin.DEFAULT)
    before = study.standings.bar().spreads
    for tokens in (1010.0, 990.0, 1005.0, 995.0):
        study.hear(tokens, 20.0, seqs=0, origin=Origin.BASELINE)
    found = study.standings.bar()
    assert found.front == ((1000.0, 20.0),)
    assert found.spreads[0].freedom == before[0].freedom + 4
    assert found.spreads[0].deviation < before[0].deviation
    wild = Study().hear(1000.0, 20.0, seqs=0).hear(1500.0, 20.0, seqs=0).hear(600.0, 20.0, seqs=0).standings.bar()
    assert wild.spreads[0].deviation > before[0].deviation


def test_noise_below_zero_cannot_be_told():
    study = Study().hear(-5.0, 20.0, seqs=0).hear(5.0, 20.0, seqs=0)
    assert study.standings.bar().spreads[0] is None
