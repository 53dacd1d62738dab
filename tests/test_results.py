"""A study read back from its ledger: tables, front, gain, hypervolume, and what is refused."""

from __future__ import annotations

import math

import pytest

from autotune import results, tables
from autotune.errors import AutotuneError, InvalidInput, NotFound, NothingMeasured
from autotune.ledger import Ledger
from autotune.pareto import hypervolume
from autotune.trial import Configuration


@pytest.fixture
def small(store):
    return results.load("small", store)


def test_trials_hold_parameters_outcomes_and_objectives(small):
    assert list(small.trials.index) == list(range(7))
    assert small.trials.loc[1, "param.max_num_seqs"] == 64
    assert small.trials.loc[0, "param.max_num_seqs"] == 128, "what the default ran with, as the engine confirmed it"
    assert small.trials.loc[1, "output_tokens_per_s"] == 150.0
    assert small.trials.loc[6, "outcome"] == "out-of-memory"
    assert math.isnan(small.trials.loc[6, "output_tokens_per_s"]), "a failed trial has no value, least of all zero"
    assert small.trials.loc[3, "violation.ttft_ms.p99 <= 500 @ request_rate=4"] == pytest.approx(0.8)


def test_rows_hold_each_load_level_of_the_measured_trials(small):
    assert len(small.rows) == 12
    row = small.rows[(small.rows.trial == 1) & (small.rows.request_rate == 2)].iloc[0]
    assert row["output_tokens_per_s"] == 75.0


def test_the_front_holds_each_configuration_once_and_never_a_broken_constraint(small):
    assert set(small.front.index) == {0, 1, 2}
    assert small.front.loc[1, "runs"] == 2
    assert 3 not in small.membership, "the fastest trial breaks its bound"
    assert 6 not in small.membership
    assert small.membership[5] == small.membership[1]


def test_gain_over_the_default_comes_with_its_uncertainty(small):
    gain = small.gain()
    assert gain.trial == 1
    assert gain.runs == (1, 2), "a finalist's search run, picked for its luck, does not count"
    assert gain.ratio == pytest.approx(147 / math.sqrt(100 * 102))
    assert gain.low < gain.ratio < gain.high
    assert gain.certain
    assert "times the default" in str(gain)


def test_gain_of_a_metric_that_is_no_objective(small):
    gain = small.gain("ttft_ms.p99 @ request_rate=2", trial=1)
    assert gain.direction == "minimize"
    assert gain.ratio == pytest.approx(260 / math.sqrt(300 * 310))


def test_without_a_repeat_there_is_no_interval(tmp_path, make_record, small_study):
    found = results.StudyResults(small_study, tuple(make_record(number) for number in (0, 1)))
    gain = found.gain()
    assert (gain.low, gain.high, gain.certain) == (None, None, None)
    assert "unknown" in str(gain)
    assert math.isnan(float(found.front.loc[1, "output_tokens_per_s.low"] or math.nan))


def test_a_configuration_that_failed_once_by_its_own_fault_leaves_the_front(make_record, small_study):
    failed = make_record(6).model_copy(update={"number": 9, "configuration": make_record(1).configuration})
    found = results.StudyResults(small_study, (make_record(0), make_record(1), failed))
    assert set(found.front.index) == {0}


def test_where_every_trial_breaks_a_constraint_the_nearest_is_told(make_record, small_study):
    found = results.StudyResults(small_study, (make_record(3),))
    with pytest.raises(NothingMeasured) as said:
        found.gain()
    assert str(said.value).endswith("Trial 3 comes nearest: it breaks ttft_ms.p99 <= 500 @ request_rate=4 by 80.0%.")


def test_hypervolume_never_falls_and_ends_at_the_fronts(small):
    volume = small.hypervolume()
    values = list(volume.values.values())
    assert values == sorted(values)
    points = [small.score(small.record(number)).values for number in (0, 1, 2, 4, 5)]
    assert values[-1] == pytest.approx(hypervolume(points, small.directions, volume.reference))


def test_the_best_within_noise_is_the_one_with_fewer_overrides(make_record, small_study):
    near = make_record(0).model_copy(update={"number": 7, "origin": "search", "configuration": make_record(2).configuration})
    found = results.StudyResults(small_study, (make_record(0), make_record(4), near))
    assert found.best("output_tokens_per_s") == 0


def test_the_best_within_noise_is_one_that_was_measured_again(make_record, small_study):
    def run(number, like, values):
        configuration = make_record(1).configuration.model_copy(update={"values": values})
        return make_record(like).model_copy(update={"number": number, "configuration": configuration})

    again = {"max_num_seqs": 64, "block_size": 32}
    runs = (make_record(0), make_record(4), run(7, 5, again), run(8, 5, again), run(9, 1, {"max_num_seqs": 64}))
    found = results.StudyResults(small_study, runs)
    assert found.best("output_tokens_per_s") == 7, "the one with fewer overrides was measured once"


def test_knee_is_a_front_member(small):
    assert small.knee() in small.front.index


def test_default_is_the_mean_of_its_runs(small):
    assert small.default["output_tokens_per_s"] == pytest.approx(math.sqrt(100 * 102))


def test_an_unknown_study_is_answered_with_the_nearest(store):
    with pytest.raises(NotFound, match="small"):
        results.load("smal", store)


def test_a_study_that_cannot_be_looked_for_is_answered(store):
    with pytest.raises(AutotuneError, match="File name too long"):
        results.load("x" * 300, store)
    (store / "small" / "ledger.jsonl").unlink()
    (store / "small" / "ledger.jsonl").mkdir()
    with pytest.raises(AutotuneError, match=r"Cannot read .*small/ledger\.jsonl: Is a directory\."):
        results.read(store / "small")


def test_an_unknown_trial_and_metric_are_answered(small):
    with pytest.raises(NotFound, match="no trial 99"):
        small.record(99)
    with pytest.raises(InvalidInput, match="ttft_ms"):
        small.best("ttft_m.p99")
    with pytest.raises(NothingMeasured, match="out-of-memory"):
        small.gain(trial=6)


def test_a_study_without_a_measurement_shows_nothing_and_says_so(make_record, small_study):
    found = results.StudyResults(small_study, (make_record(6),))
    assert found.front.empty
    assert found.rows.empty
    for ask in (found.knee, found.hypervolume, found.gain):
        with pytest.raises(NothingMeasured):
            ask()
    assert results.StudyResults(small_study, ()).trials.empty


def test_a_running_study_can_be_read(tmp_path, make_record):
    with Ledger(tmp_path / "small", _study_text(), "digest") as ledger:
        ledger.record(make_record(0))
        assert list(results.load("small", tmp_path).trials.index) == [0]


def _study_text():
    return "name: small\nengine: {kind: vllm, model: m}\nworkload: {kind: http}\nobjectives: [{maximize: sps}]\n"


def test_a_study_of_several_engines_names_the_engine_of_each_trial(small_study, make_record):
    """Both have a default, which without its engine is anybody's."""
    several = small_study.model_copy(update={"engine": ({"kind": "recorded"}, {"kind": "sglang"})})
    other = make_record(1).model_copy(update={"configuration": Configuration(engine="sglang")})
    found = results.StudyResults(several, (make_record(0), other))
    for rows in (tables.trial_rows(found), tables.front_rows(found)):
        assert {"sglang: default", f"{make_record(0).configuration.engine}: default"} == {str(cells[-1]) for cells in rows.cells}
    (alone,) = tables.trial_rows(results.StudyResults(small_study, (make_record(0),))).cells
    assert alone[-1] == "default"
