from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import pareto
from autotune.score import Objective, Score, Selector
from autotune.search import screening
from autotune.search.stopping import Growth, flat, next_gain
from autotune.trial import Configuration, Measured, Measurement, Origin, Row, TrialRecord

OBJECTIVES = (Objective(selector=Selector.parse("output_tokens_per_s"), direction="maximize"),)


def record(rates: dict[float, float], invalid: float | None = None, closed: float | None = None) -> TrialRecord:
    rows = [
        Row(level={"request_rate": rate}, metrics={"output_tokens_per_s": tokens}, invalid="late" if rate == invalid else None)
        for rate, tokens in rates.items()
    ]
    if closed is not None:
        rows.append(Row(level={"concurrency": 64}, metrics={"output_tokens_per_s": closed}))
    outcome = Measured(measurement=Measurement(rows=tuple(rows)))
    fields = {"seconds": {"start": 60.0, "measure": 60.0}, "origin": Origin.DEFAULT}
    return TrialRecord(number=0, configuration=Configuration(engine="vllm"), outcome=outcome, **fields)


def test_a_search_is_flat_after_so_many_trials_without_growth():
    assert flat([1.0, 2.0, 2.001, 2.002], 2)
    assert not flat([1.0, 2.0, 2.1], 2)
    assert not flat([2.0, 2.0], 2)
    assert not flat([0.0, 0.0, 0.0], 2)
    assert not flat([2.0] * 50, 0)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=40))
def test_the_next_gain_is_never_negative_and_zero_when_nothing_grew(growth):
    volumes = [1.0]
    for step in growth:
        volumes.append(volumes[-1] + step)
    assert next_gain(volumes) >= 0
    assert next_gain([3.0] * 10) == 0


def test_there_is_no_gain_to_expect_before_a_front():
    assert next_gain([0.0, 0.0, 0.0]) is None
    assert next_gain([1.0]) is None


def test_the_knee_is_where_throughput_stops_to_follow_the_load():
    (said,) = screening.default_says(record({10: 1000, 20: 2000, 40: 2500}))
    assert "up to 20 requests/s" in said


def test_a_load_below_the_limit_is_warned_of():
    (said,) = screening.default_says(record({10: 1000, 20: 2000, 40: 4000}))
    assert "measures the client" in said
    (said,) = screening.default_says(record({10: 1000, 20: 2000}, closed=2050))
    assert "near its limit" in said


def test_an_invalid_level_of_the_default_is_told():
    said = screening.default_says(record({10: 1000, 20: 2000, 40: 900}, invalid=40))
    assert said[0] == "The default's load level request_rate=40 is invalid: late"


def test_trials_within_the_noise_are_warned_of_and_others_are_not():
    near = [Score(values=(100.0 + index % 2,)) for index in range(8)]
    far = [Score(values=(100.0 + 10 * index,)) for index in range(8)]
    assert "nothing to tune" in screening.first_trials_say(near, [0.02], OBJECTIVES)[0]
    assert screening.first_trials_say(far, [0.02], OBJECTIVES) == []
    assert screening.first_trials_say(near[:7], [0.02], OBJECTIVES) == []


def test_the_default_launched_again_tells_the_noise():
    records = [record({10: 100}), record({10: 110})]
    scores = [Score(values=(100.0,)), Score(values=(110.0,))]
    assert "6.7%" in screening.noise_says(records, scores, OBJECTIVES)[0]
    assert screening.noise_says(records[:1], scores[:1], OBJECTIVES) == []


def test_the_noise_of_a_reward_is_no_share_of_a_mean_near_zero():
    """Relaunches give -0.02 to 0.02, and the first trials learn 0.1 to 0.8: there is much to tune."""
    reward = (Objective(selector=Selector(metric="reward"), direction="maximize"),)
    records, relaunched = [record({10: 100})] * 3, [Score(values=(value,)) for value in (-0.02, 0.0, 0.02)]
    assert screening.noise_says(records, relaunched, reward)[0].endswith("reward 0.02 (standard deviation).")
    learnt = [Score(values=(0.1 * (index + 1),)) for index in range(8)]
    near = [Score(values=(0.01 + 0.005 * (index % 2),)) for index in range(8)]
    noise = screening._spreads([Score(values=(0.001,)), Score(values=(0.021,))], reward)
    assert screening.first_trials_say(learnt, noise, reward) == []
    assert "nothing to tune" in screening.first_trials_say(near, noise, reward)[0]


def test_what_the_budget_still_buys():
    assert screening.trials_affordable(2.0, 16.0, 6.0) == 5
    assert screening.trials_affordable(2.0, None, 2.0) is None
    assert screening.trials_affordable(0.0, 16.0) is None, "nothing is known yet of what a trial costs"


def test_a_default_that_finished_nothing_at_a_level_is_no_error():
    assert screening.default_says(record({10: 0.0, 20: 0.0})) == []


def test_a_trial_that_adds_nothing_costs_no_hypervolume(monkeypatch):
    growth, computed, compute = Growth(("maximize", "minimize")), [], pareto._volume
    monkeypatch.setattr(pareto, "_volume", lambda *given: computed.append(given) or compute(*given))
    for _ in range(50):
        growth.add(None)
    growth.add(Score(values=(1.0, 1.0)))
    for _ in range(50):
        growth.add(None)
    assert len(growth.volumes) == 101
    assert len(computed) <= 2


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100), st.booleans()), max_size=40))
def test_the_hypervolume_never_shrinks_and_is_that_of_all_points_once_settled(trials):
    directions = ("maximize", "minimize")
    growth = Growth(directions)
    for one, other, feasible in trials:
        growth.add(Score(values=(one, other), violations=(-0.1 if feasible else 0.1,)))
    growth.add(None)
    assert len(growth.volumes) == len(trials) + 1
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(growth.volumes))
    points = [(one, other) for one, other, feasible in trials if feasible]
    if points:
        reference = pareto.nadir_reference(points[:10], directions)
        assert growth.volumes[-1] == pytest.approx(pareto.hypervolume(points, directions, reference))


def test_another_engines_default_is_no_launch_of_the_default_again(small_study):
    """Two engines differ by what they are; only the first one's default is measured again as the drift gauge."""
    heard = screening.Screening(small_study.model_copy(update={"engine": ({"kind": "vllm"}, {"kind": "sglang"})}))
    score = {number: Score(values=(tokens, 1.0)) for number, tokens in enumerate((100.0, 500.0, 110.0))}
    engines = ("vllm", "sglang", "vllm")
    origins = (Origin.DEFAULT, Origin.DEFAULT, Origin.BASELINE)
    said = []
    for number, (engine, origin) in enumerate(zip(engines, origins, strict=True)):
        update = {"number": number, "configuration": Configuration(engine=engine), "origin": origin}
        said = heard.hear(record({10: 1}).model_copy(update=update), score[number])
    assert said == ["2 launches of the default differ by (coefficient of variation): " + said[0].split(": ")[1]]
    assert "6.7%" in said[0]


def test_a_default_whose_rates_a_climb_chose_is_not_asked_for_higher_ones():
    one = record({0.75: 40, 1.5: 80, 3: 160})
    assert "Add a higher request_rate" in screening.default_says(one)[0]
    climbed = one.outcome.measurement.model_copy(update={"facts": {"climb_found_limit": True}})
    assert screening.default_says(one.model_copy(update={"outcome": Measured(measurement=climbed)})) == []
