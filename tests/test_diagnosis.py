import math

import pytest

from autotune.diagnosis import across, findings
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, Row, TrialRecord


def names(measurement):
    return [finding.name for finding in findings(Measured(measurement=measurement))]


def training(count=40, totals=None, **curves):
    rows = [Row(level={"step": n}, metrics={name: curve(n) for name, curve in curves.items()}) for n in range(count)]
    return Measurement(rows=tuple(rows), totals=totals or {})


def test_nothing_measured_says_nothing():
    assert names(Measurement(rows=())) == []
    assert names(training(reward=lambda n: 0.01 * n)) == []


def test_a_reward_that_only_jitters_is_flat():
    flat = training(reward=lambda n: 0.5 + 0.05 * math.sin(7 * n), totals={"zero_std_ratio": 0.8})
    (found,) = findings(Measured(measurement=flat))
    assert found.name == "reward-flat" and "80% of the groups" in found.evidence and "learning rate" in found.remedy
    assert "reward-flat" not in names(training(reward=lambda n: 0.5 + 0.01 * n + 0.05 * math.sin(7 * n)))
    assert "reward-flat" not in names(training(count=5, reward=lambda n: 0.5)), "five steps are too few to say"
    assert "reward-flat" in names(training(reward=lambda n: 0.5))


def test_curves_of_several_seeds_are_not_joined():
    rows = tuple(Row(level={"seed": seed, "step": n}, metrics={"reward": 0.02 * n}) for seed in (0, 1) for n in range(20))
    assert names(Measurement(rows=rows)) == []


def test_kl_that_runs_away():
    assert names(training(kl=lambda n: 0.001 * n**2.5)) == ["kl-running-away"]
    assert names(training(kl=lambda n: 0.01 * n)) == [], "below a nat is nothing to fear"
    assert names(training(kl=lambda n: 2.0)) == [], "high and steady is not running away"


@pytest.mark.parametrize(
    ("totals", "name"),
    [
        ({"step_s": 10.0, "generate_s": 7.0, "update_s": 2.0}, "rollout-bound"),
        ({"step_s": 10.0, "generate_s": 2.0, "update_s": 7.0}, "update-bound"),
        ({"step_s": 10.0, "reward_s": 3.0}, "reward-function-slow"),
        ({"step_s": 10.0, "weight_sync_s": 2.0}, "communication-bound"),
        ({"step_s": 10.0, "testing_s": 1.0, "save_checkpoint_s": 1.0}, "upkeep-bound"),
        ({"step_s": 10.0, "testing_s": 1.0}, None),
        ({"truncated_ratio": 0.9}, "answers-cut"),
        ({"step_s": 10.0, "generate_s": 4.0, "update_s": 4.0, "reward_s": 1.0}, None),
        ({"generate_s": 7.0}, None),
        ({"step_s": 0.0, "generate_s": 0.0}, None),
    ],
)
def test_what_bounds_a_step(totals, name):
    assert names(training(count=1, totals=totals)) == ([] if name is None else [name])


def test_out_of_memory_comes_first_and_partial_measurements_speak():
    partial = training(count=3, totals={"truncated_ratio": 0.9})
    failed = Failed(kind=FailureKind.OUT_OF_MEMORY, phase=Phase.MEASURE, evidence=("CUDA out of memory",), partial=partial)
    assert [finding.name for finding in findings(failed)] == ["out-of-memory", "answers-cut"]
    assert findings(failed)[0].evidence == "CUDA out of memory" and "micro-batch" in findings(failed)[0].remedy
    assert findings(Failed(kind=FailureKind.CRASHED, phase=Phase.START)) == ()


def test_serving():
    rows = (
        Row(level={"request_rate": 1}, metrics={"kv_cache_usage": 0.3, "queue_depth": 1.0, "preemptions": 0.0}),
        Row(level={"request_rate": 9}, metrics={"kv_cache_usage": 0.99, "queue_depth": 80.0, "preemptions": 4.0}),
    )
    assert names(Measurement(rows=rows)) == ["preemptions", "kv-cache-full", "queueing"]
    assert names(Measurement(rows=rows[:1])) == []
    busy = Row(level={"concurrency": 512}, metrics={"queue_depth": 0.0, "frontend_cpu_share": 0.97})
    found = findings(Measured(measurement=Measurement(rows=(rows[0], busy))))
    assert [one.name for one in found] == ["frontend-bound"]
    assert "97% of a core, with 0 requests waiting" in found[0].evidence and "api_server_count" in found[0].remedy
    slow = Row(level={"request_rate": 9}, metrics={}, invalid="The load client was the bottleneck: it lagged 300 ms.")
    assert names(Measurement(rows=(slow,))) == ["client-bound"]


def record(number, sps, **totals):
    outcome = Measured(measurement=Measurement(rows=(Row(level={}, metrics={}),), totals={"sps": sps, **totals}))
    return TrialRecord(number=number, configuration=Configuration(engine="trl"), origin=Origin.SEARCH, outcome=outcome)


def test_flat_samples_per_second_over_trials():
    assert across([record(n, 10 + 0.01 * n) for n in range(6)])[0].name == "samples-per-second-flat"
    assert across([record(n, 10.0 + n) for n in range(6)]) == ()
    assert across([record(n, 10.0) for n in range(4)]) == (), "four trials are too few to say"
    idle = across([record(n, 10.0, gpu_utilization=0.2 + 0.01 * n) for n in range(6)])[0]
    assert "GPUs busy 20% to 25%" in idle.evidence
